{{- define "hookpost.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "hookpost.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "hookpost.labels" -}}
{{ include "hookpost.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "hookpost.image" -}}
{{- $repository := required "image.repository must name the image that you built from deploy/Containerfile" .Values.image.repository -}}
{{- if .Values.image.digest }}{{ $repository }}@{{ .Values.image.digest }}{{ else }}{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end -}}
{{- end }}

{{- /* Settings in the pod itself: the migration runs before anything else of the release exists. */}}
{{- define "hookpost.environment" -}}
{{- $secret := required "existingSecret must name a Secret with HOOKPOST_DATABASE_URL, HOOKPOST_ENCRYPTION_KEYS and HOOKPOST_ADMIN_KEY" .Values.existingSecret -}}
{{- range $name := list "HOOKPOST_DATABASE_URL" "HOOKPOST_ENCRYPTION_KEYS" "HOOKPOST_ADMIN_KEY" }}
- name: {{ $name }}
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ $name }}}}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{- if has $name (list "HOOKPOST_DATABASE_URL" "HOOKPOST_ENCRYPTION_KEYS" "HOOKPOST_ADMIN_KEY" "HOOKPOST_STOP_S" "HOOKPOST_METRICS_LISTEN" "HOOKPOST_HOST" "HOOKPOST_PORT" "HOOKPOST_POOL") }}
{{- fail (printf "settings.%s is set by the chart: see values.yaml" $name) }}
{{- end }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
- name: HOOKPOST_STOP_S
  value: {{ .Values.stopSeconds | quote }}
{{- end }}

{{- define "hookpost.envFrom" -}}
{{- with .Values.extraSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- define "hookpost.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "hookpost.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "hookpost.placement" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "hookpost.selector" . | nindent 8 }}
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "hookpost.selector" . | nindent 8 }}
{{- end }}

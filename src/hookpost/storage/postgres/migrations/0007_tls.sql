-- TLS of endpoints' own. All columns may be null: processes of the release before go on writing.
alter table endpoints add column tls_ca text;
alter table endpoints add column tls_cert text;
alter table endpoints add column sealed_tls_key bytea;
alter table endpoints add constraint endpoints_tls_key_of check (sealed_tls_key is null or tls_cert is not null);
comment on column endpoints.tls_ca is 'PEM of the certificates to trust instead of the installation''s';
comment on column endpoints.tls_cert is 'PEM of the client certificate and its chain';
comment on column endpoints.sealed_tls_key is 'its private key, sealed with the tenant''s data key and bound to the endpoint (policy/sealing)';

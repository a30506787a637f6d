-- When an endpoint's run of failures began, ended or was announced: the other workers that deliver to it hear of it.
alter table endpoints add column health_at timestamptz;
create index endpoints_health_at on endpoints (health_at) where health_at is not null;

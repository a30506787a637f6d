-- Shards that are taken out of use: nobody is given a home there any more. Processes of the release before do not know
-- the column: a tenant that one of them creates or spreads may still come to live there, and goes with the next drain.

alter table shards add column draining boolean not null default false;
comment on column shards.draining is 'nobody gets a new home there; who is there is moved away by `hookpost shards drain`';

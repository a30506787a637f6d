-- Bulk replays of what died of one reason. Processes of the release before do not know the column: one of them that goes
-- on with such a replay during an upgrade replays what else is dead, too.

alter table replays add column reason text;
comment on column replays.reason is 'of the dead ones, only those that died of this; null: whatever they died of';

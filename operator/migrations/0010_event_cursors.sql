-- How far each stream of events was heard. One that begins goes on where the earliest of its identity was.
CREATE TABLE event_cursor (
    stream     uuid PRIMARY KEY,
    identity   bytea NOT NULL CHECK (octet_length(identity) = 33),
    seq        bigint NOT NULL CHECK (seq >= 0),
    ended_at   timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX event_cursor_identity ON event_cursor (identity, seq);
CREATE INDEX event_cursor_ended ON event_cursor (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX event_log_age ON event_log (created_at);

-- Who besides its owner may read what concerns an identity here. Without a row: nobody.
CREATE TABLE wallet_setting (
    identity   bytea PRIMARY KEY CHECK (octet_length(identity) = 33),
    private    boolean NOT NULL,
    master     bytea CHECK (octet_length(master) = 33),
    updated_at timestamptz NOT NULL DEFAULT now()
);

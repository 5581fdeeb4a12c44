-- The lease whose allocation a hold took over, 0 for none: such a hold ends the allocation for good, while one that an
-- earlier try of the same attempt placed ends by itself.
ALTER TABLE ledger.hold ADD COLUMN from_epoch bigint NOT NULL DEFAULT 0;

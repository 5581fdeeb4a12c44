-- What a version says besides its prices, in the form of store/price_format.py.
ALTER TABLE metering.price_version
    ADD COLUMN meters jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN plans jsonb NOT NULL DEFAULT '[]';

GRANT UPDATE (meters, plans) ON metering.price_version TO metering_writer;

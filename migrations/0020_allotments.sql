-- Units of a product that other partitions than its own sell.

ALTER TABLE products
    -- Units that the owner partition has given to other ones and not taken back.
    ADD COLUMN allotted      bigint NOT NULL DEFAULT 0,
    -- The number of the price, which each change of the price increments.
    ADD COLUMN price_version bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT products_units_not_negative,
    DROP CONSTRAINT products_units_conserved,
    ADD CONSTRAINT products_units_not_negative CHECK (
        on_sale >= 0 AND held >= 0 AND sold >= 0 AND withheld >= 0 AND allotted >= 0),
    ADD CONSTRAINT products_units_conserved CHECK (on_sale + held + sold + withheld + allotted = stocked);

-- What the owner partition of a product, which writes these rows, ever gave to another partition and took back from it.
CREATE TABLE allotments (
    product_id bigint  NOT NULL,
    partition  integer NOT NULL,
    allotted   bigint  NOT NULL DEFAULT 0,
    regained   bigint  NOT NULL DEFAULT 0,
    recovered  bigint  NOT NULL DEFAULT 0,
    CONSTRAINT allotments_pk PRIMARY KEY (product_id, partition),
    CONSTRAINT allotments_not_negative CHECK (allotted >= 0 AND regained >= 0 AND recovered >= 0)
);

-- What another partition, which writes these rows, ever received and gave back, and the units that it has of the product.
CREATE TABLE partition_stock (
    product_id  bigint  NOT NULL,
    partition   integer NOT NULL,
    on_sale     bigint  NOT NULL DEFAULT 0,
    held        bigint  NOT NULL DEFAULT 0,
    sold        bigint  NOT NULL DEFAULT 0,
    withheld    bigint  NOT NULL DEFAULT 0,
    received    bigint  NOT NULL DEFAULT 0,
    returned    bigint  NOT NULL DEFAULT 0,
    surrendered bigint  NOT NULL DEFAULT 0,
    CONSTRAINT partition_stock_pk PRIMARY KEY (product_id, partition),
    CONSTRAINT partition_stock_not_negative CHECK (
        on_sale >= 0 AND held >= 0 AND sold >= 0 AND withheld >= 0 AND received >= 0 AND returned >= 0 AND surrendered >= 0),
    CONSTRAINT partition_stock_conserved CHECK (on_sale + held + sold + withheld = received - returned - surrendered)
) WITH (fillfactor = 70);

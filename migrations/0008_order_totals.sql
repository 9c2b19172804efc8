-- How many orders there are, by status: what the dashboard shows every second, and counting them would take longer the better
-- the shop does.
--
-- Postgres keeps these itself, in the transaction that changes the orders, whoever changes them: the projector's batches, a dead
-- letter that is tried again, and also a projector of the version before this one, which goes on while the processes are
-- replaced one by one. A partition's orders are changed by one transaction at a time, so nobody waits for anybody here.
CREATE TABLE order_totals (
    -- Where the orders are at home: their id modulo the number of partitions.
    partition integer NOT NULL,
    status    text    NOT NULL,
    orders    bigint  NOT NULL,
    CONSTRAINT order_totals_pk PRIMARY KEY (partition, status)
) WITH (fillfactor = 20);

CREATE FUNCTION count_orders() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO order_totals AS total (partition, status, orders)
        SELECT id % coalesce((SELECT partitions FROM store), 1) AS home, status, count(*) FROM after GROUP BY 1, 2 ORDER BY 1, 2
        ON CONFLICT (partition, status) DO UPDATE SET orders = total.orders + excluded.orders;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO order_totals AS total (partition, status, orders)
        SELECT id % coalesce((SELECT partitions FROM store), 1) AS home, status, -count(*) FROM before GROUP BY 1, 2 ORDER BY 1, 2
        ON CONFLICT (partition, status) DO UPDATE SET orders = total.orders + excluded.orders;
    END IF;
    RETURN NULL;
END $$;

-- Statement by statement, not row by row. (A trigger that sees the rows is of one kind of statement.)
CREATE TRIGGER orders_new AFTER INSERT ON orders
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION count_orders();
CREATE TRIGGER orders_changed AFTER UPDATE ON orders
    REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION count_orders();
CREATE TRIGGER orders_gone AFTER DELETE ON orders
    REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION count_orders();

INSERT INTO order_totals (partition, status, orders)
SELECT id % coalesce((SELECT partitions FROM store), 1), status, count(*) FROM orders GROUP BY 1, 2;

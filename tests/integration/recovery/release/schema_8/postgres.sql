--
-- PostgreSQL database dump
--


-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: count_orders(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.count_orders() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: _sqlx_migrations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public._sqlx_migrations (
    version bigint NOT NULL,
    description text NOT NULL,
    installed_on timestamp with time zone DEFAULT now() NOT NULL,
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
);


--
-- Name: balance_entries; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.balance_entries (
    user_id bigint NOT NULL,
    entry_no bigint NOT NULL,
    transaction_type text NOT NULL,
    amount bigint NOT NULL,
    before_balance bigint NOT NULL,
    after_balance bigint NOT NULL,
    order_id bigint,
    created_at timestamp with time zone NOT NULL,
    CONSTRAINT balance_entries_not_negative CHECK (((amount > 0) AND (before_balance >= 0) AND (after_balance >= 0))),
    CONSTRAINT balance_entries_sum CHECK ((after_balance = (before_balance +
CASE transaction_type
    WHEN 'PAYMENT'::text THEN (- amount)
    WHEN 'CHARGE'::text THEN amount
    WHEN 'REFUND'::text THEN amount
    ELSE NULL::bigint
END)))
);


--
-- Name: campaigns; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.campaigns (
    id bigint NOT NULL,
    code text NOT NULL,
    discount_type text NOT NULL,
    discount_amount bigint NOT NULL,
    total bigint NOT NULL,
    issued bigint NOT NULL,
    opens_at timestamp with time zone NOT NULL,
    closes_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    created_at timestamp with time zone NOT NULL,
    withheld bigint DEFAULT 0 NOT NULL,
    CONSTRAINT campaigns_discount CHECK ((((discount_type = 'PERCENTAGE'::text) AND ((discount_amount >= 1) AND (discount_amount <= 100))) OR ((discount_type = 'FIXED'::text) AND (discount_amount >= 1)))),
    CONSTRAINT campaigns_issued_bounds CHECK (((issued >= 0) AND (withheld >= 0) AND ((issued + withheld) <= total)))
)
WITH (fillfactor='50');


--
-- Name: dead_letters; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.dead_letters (
    partition integer NOT NULL,
    stream_id text NOT NULL,
    epoch bigint,
    seq bigint,
    reason text NOT NULL,
    fields jsonb NOT NULL,
    recorded_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: far_coupons; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.far_coupons (
    coupon_id bigint NOT NULL,
    user_id bigint NOT NULL,
    issue_no bigint NOT NULL,
    issued_at timestamp with time zone NOT NULL
);


--
-- Name: id_sequences; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.id_sequences (
    name text NOT NULL,
    last bigint NOT NULL
);


--
-- Name: idempotency_records; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.idempotency_records (
    partition integer NOT NULL,
    digest text NOT NULL,
    fingerprint text NOT NULL,
    reply text NOT NULL,
    expires_at timestamp with time zone NOT NULL
);


--
-- Name: operator_acts; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.operator_acts (
    id uuid NOT NULL,
    operator text NOT NULL,
    act text NOT NULL,
    target text NOT NULL,
    detail text NOT NULL,
    status integer NOT NULL,
    request_id text NOT NULL,
    at timestamp with time zone NOT NULL
);


--
-- Name: order_lines; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.order_lines (
    order_id bigint NOT NULL,
    product_id bigint NOT NULL,
    quantity bigint NOT NULL,
    price bigint NOT NULL,
    place integer DEFAULT 0 NOT NULL,
    CONSTRAINT order_lines_price_not_negative CHECK ((price >= 0)),
    CONSTRAINT order_lines_quantity_bounds CHECK (((quantity >= 1) AND (quantity <= 10000)))
);


--
-- Name: order_totals; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.order_totals (
    partition integer NOT NULL,
    status text NOT NULL,
    orders bigint NOT NULL
)
WITH (fillfactor='20');


--
-- Name: orders; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.orders (
    id bigint NOT NULL,
    user_id bigint NOT NULL,
    status text NOT NULL,
    total bigint NOT NULL,
    discount bigint NOT NULL,
    final_price bigint NOT NULL,
    coupon_id bigint,
    placed_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    paid_at timestamp with time zone,
    closed_at timestamp with time zone,
    close_reason text,
    sold_on date,
    CONSTRAINT orders_price CHECK ((((discount >= 0) AND (discount <= total)) AND (final_price = (total - discount)))),
    CONSTRAINT orders_status CHECK ((((status = 'PENDING'::text) AND (paid_at IS NULL) AND (closed_at IS NULL)) OR ((status = 'PAID'::text) AND (paid_at IS NOT NULL) AND (closed_at IS NULL)) OR ((status = 'FAILED'::text) AND (paid_at IS NULL) AND (closed_at IS NOT NULL) AND (close_reason = 'PAYMENT_DECLINED'::text)) OR ((status = 'CANCELLED'::text) AND (closed_at IS NOT NULL) AND (close_reason = ANY (ARRAY['CANCELLED_BY_USER'::text, 'EXPIRED'::text, 'REFUNDED'::text])) AND ((close_reason = 'REFUNDED'::text) = (paid_at IS NOT NULL)))))
)
WITH (fillfactor='80');


--
-- Name: payments; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.payments (
    id bigint NOT NULL,
    order_id bigint NOT NULL,
    user_id bigint NOT NULL,
    payment_type text NOT NULL,
    method text NOT NULL,
    status text NOT NULL,
    amount bigint NOT NULL,
    receipt text NOT NULL,
    transaction_id text,
    started_at timestamp with time zone NOT NULL,
    paid_at timestamp with time zone,
    ended_at timestamp with time zone,
    key_digest text,
    key_fingerprint text,
    CONSTRAINT payments_amount_not_negative CHECK ((amount >= 0)),
    CONSTRAINT payments_method CHECK ((method = ANY (ARRAY['BALANCE'::text, 'GATEWAY'::text]))),
    CONSTRAINT payments_status CHECK ((status = ANY (ARRAY['STARTED'::text, 'PAID'::text, 'DECLINED'::text, 'WATCHED'::text, 'REFUND_DUE'::text, 'REFUNDED'::text])))
);


--
-- Name: products; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.products (
    id bigint NOT NULL,
    name text NOT NULL,
    category text NOT NULL,
    price bigint NOT NULL,
    on_sale bigint NOT NULL,
    held bigint NOT NULL,
    sold bigint NOT NULL,
    stocked bigint NOT NULL,
    created_at timestamp with time zone NOT NULL,
    withheld bigint DEFAULT 0 NOT NULL,
    CONSTRAINT products_price_not_negative CHECK ((price >= 0)),
    CONSTRAINT products_units_conserved CHECK (((((on_sale + held) + sold) + withheld) = stocked)),
    CONSTRAINT products_units_not_negative CHECK (((on_sale >= 0) AND (held >= 0) AND (sold >= 0) AND (withheld >= 0)))
)
WITH (fillfactor='50');


--
-- Name: projection_positions; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.projection_positions (
    partition integer NOT NULL,
    epoch bigint NOT NULL,
    seq bigint NOT NULL,
    stream_id text NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: stock_holds; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.stock_holds (
    partition integer NOT NULL,
    order_id bigint NOT NULL,
    user_id bigint NOT NULL,
    state text NOT NULL,
    lines text NOT NULL,
    CONSTRAINT stock_holds_state CHECK ((state = ANY (ARRAY['HELD'::text, 'SETTLED'::text, 'RELEASED'::text, 'REFUNDED'::text])))
);


--
-- Name: store; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.store (
    singleton boolean DEFAULT true NOT NULL,
    store text NOT NULL,
    partitions integer NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    ack text DEFAULT 'redis'::text NOT NULL,
    CONSTRAINT store_ack CHECK ((ack = ANY (ARRAY['redis'::text, 'postgres'::text]))),
    CONSTRAINT store_is_one CHECK (singleton),
    CONSTRAINT store_partitions_bounds CHECK (((partitions >= 1) AND (partitions <= 256)))
);


--
-- Name: user_coupons; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.user_coupons (
    coupon_id bigint NOT NULL,
    user_id bigint NOT NULL,
    issue_no bigint NOT NULL,
    status text NOT NULL,
    order_id bigint,
    issued_at timestamp with time zone NOT NULL,
    used_at timestamp with time zone,
    CONSTRAINT user_coupons_status CHECK ((((status = 'AVAILABLE'::text) AND (order_id IS NULL) AND (used_at IS NULL)) OR ((status = 'HELD'::text) AND (order_id IS NOT NULL) AND (used_at IS NULL)) OR ((status = 'USED'::text) AND (order_id IS NOT NULL) AND (used_at IS NOT NULL))))
)
WITH (fillfactor='85');


--
-- Name: users; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.users (
    id bigint NOT NULL,
    name text NOT NULL,
    balance bigint NOT NULL,
    created_at timestamp with time zone NOT NULL,
    CONSTRAINT users_balance_not_negative CHECK ((balance >= 0))
)
WITH (fillfactor='80');


--
-- Name: watermarks; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.watermarks (
    partition integer NOT NULL,
    epoch bigint NOT NULL,
    seq bigint NOT NULL,
    told_at timestamp with time zone NOT NULL
);


--
-- Data for Name: _sqlx_migrations; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public._sqlx_migrations VALUES
	(1, 'initial', '2026-11-28 23:39:44.218589+00', true, '\x5a1781b8dc37d917d370e1823b1739aa39b51df8caa7b64cf98ce608f60af958a42dc1af14eb798fa65f751b2d008601', 8854508),
	(2, 'rebuild', '2026-11-28 23:39:44.22796+00', true, '\xce2636b74ad62e262f293764178c863e8d1e1139ad5caf96913c86aa61cb948851ade3a177a0945b1450f53456fb09fa', 4002022),
	(3, 'batches', '2026-11-28 23:39:44.232098+00', true, '\xe9462b928d605a8c71b073903c188ff25f1fa0f0d6dfbe1bf7ced12aef6b4f93fe92a58cfcfd425ee57a405b4d308532', 924029),
	(4, 'order lines place', '2026-11-28 23:39:44.233206+00', true, '\x6cf9020228ca440e6651ddfabf5417b643b99ccb9a535cccc29476552511289a9cb513dccc55263f669691d5b3ea401f', 446116),
	(5, 'projection cost', '2026-11-28 23:39:44.233761+00', true, '\x20e2f3b6ec68dc4d61684c9104d85b5acc46c4884cae41604ac67f20b82d8b75fad99c436c2183c3b68196917bff9226', 1507099),
	(7, 'operator acts', '2026-11-28 23:39:44.235453+00', true, '\x19288e5ee3c6d6758902009cb6427b8bdc69b396229b4e5e66f65cf59d3f895756be53bc5506a1fc66904abef9619ec3', 1171549),
	(8, 'order totals', '2026-11-28 23:39:44.236744+00', true, '\x92a1c94712c08beff1ba5265f14a70d7fc71c96e6e1e8ebdbcc05ab7df9be594396f3d994035b055cf24ca2e3612018b', 2581212);


--
-- Data for Name: balance_entries; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.balance_entries VALUES
	(4, 1, 'CHARGE', 3000, 0, 3000, NULL, '2026-03-02 05:00:00+00'),
	(6, 1, 'CHARGE', 3000, 0, 3000, NULL, '2026-03-02 05:00:00+00'),
	(8, 1, 'CHARGE', 3000, 0, 3000, NULL, '2026-03-02 05:00:00+00'),
	(2, 1, 'CHARGE', 1, 0, 1, NULL, '2026-03-02 05:00:00+00'),
	(2, 2, 'CHARGE', 100000, 1, 100001, NULL, '2026-03-02 05:00:00+00'),
	(2, 3, 'CHARGE', 20, 100001, 100021, NULL, '2026-03-02 05:00:00+00'),
	(1, 1, 'CHARGE', 500000, 0, 500000, NULL, '2026-03-02 05:00:00+00'),
	(3, 1, 'CHARGE', 3000, 0, 3000, NULL, '2026-03-02 05:00:00+00'),
	(5, 1, 'CHARGE', 3000, 0, 3000, NULL, '2026-03-02 05:00:00+00'),
	(7, 1, 'CHARGE', 3000, 0, 3000, NULL, '2026-03-02 05:00:00+00'),
	(9, 1, 'CHARGE', 3000, 0, 3000, NULL, '2026-03-02 05:00:00+00'),
	(1, 2, 'PAYMENT', 90986, 500000, 409014, 3, '2026-03-02 05:00:00+00'),
	(1, 3, 'PAYMENT', 134800, 409014, 274214, 5, '2026-03-02 05:00:00+00'),
	(1, 4, 'REFUND', 134800, 274214, 409014, 5, '2026-03-02 05:00:00+00'),
	(1, 5, 'PAYMENT', 399200, 409014, 9814, 9, '2026-03-02 05:00:00+00'),
	(1, 6, 'CHARGE', 20000, 9814, 29814, NULL, '2026-03-02 05:00:00+00');


--
-- Data for Name: campaigns; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.campaigns VALUES
	(2, 'HANGHAE8888', 'PERCENTAGE', 33, 9, 2, '2026-03-02 05:00:00+00', '2026-03-02 06:11:40+00', '2026-03-03 05:00:00+00', '2026-03-02 05:00:00+00', 0),
	(1, 'HANGHAE8888', 'FIXED', 1000, 2, 2, '2026-03-02 05:00:00+00', '2026-03-03 05:00:00+00', '2026-03-03 05:00:00+00', '2026-03-02 05:00:00+00', 0);


--
-- Data for Name: dead_letters; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: far_coupons; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.far_coupons VALUES
	(2, 1, 1, '2026-03-02 05:00:00+00'),
	(1, 2, 2, '2026-03-02 05:00:00+00');


--
-- Data for Name: id_sequences; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: idempotency_records; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: operator_acts; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.operator_acts VALUES
	('01a22487-6b4e-7045-9868-c4f1de34f0dc', 'admin', 'POST /admin/v1/users', 'userId=1', '{"userName":"이다은","balance":500000}', 201, '01a224876b4e70459868c4f0fefb923c', '2026-03-02 05:00:00+00'),
	('01a22487-6b51-76c7-a831-43b3cdcc4195', 'admin', 'POST /admin/v1/users', 'userId=2', '{"userName":"이다은","balance":0}', 201, '01a224876b5176c7a83143b294e3a72f', '2026-03-02 05:00:00+00'),
	('01a22487-6b53-76eb-bed9-b7837edf8c20', 'admin', 'POST /admin/v1/users/bulk', 'firstUserId=3', '{"count":7,"namePrefix":"손님","balance":3000}', 201, '01a224876b5376ebbed9b7822af5deaa', '2026-03-02 05:00:00+00'),
	('01a22487-6b55-7353-8fe2-a483f467129a', 'admin', 'POST /admin/v1/products', 'productId=1', '{"productName":"나이키 에어포스","price":49900,"stockQuantity":40,"category":"SHOES"}', 201, '01a224876b5573538fe2a482361c035a', '2026-03-02 05:00:00+00'),
	('01a22487-6b57-73c1-bb3b-d11b5ae7a6ef', 'admin', 'POST /admin/v1/products', 'productId=2', '{"productName":"나이키 에어포스","price":12000,"stockQuantity":9,"category":"SHOES"}', 201, '01a224876b5773c1bb3bd11a3c09ad31', '2026-03-02 05:00:00+00'),
	('01a22487-6b59-7057-8a53-5421867820bd', 'admin', 'POST /admin/v1/products', 'productId=3', '{"productName":"나이키 에어포스","price":0,"stockQuantity":3,"category":"SHOES"}', 201, '01a224876b5970578a535420a03c0d70', '2026-03-02 05:00:00+00'),
	('01a22487-6b5b-772a-a731-ae3df97a100e', 'admin', 'POST /admin/v1/coupons', 'couponId=1', '{"couponCode":"HANGHAE8888","discountType":"FIXED","discountAmount":1000,"totalQuantity":2,"opensAt":null,"closesAt":null,"expiredAt":"2026-03-03 14:00:00"}', 201, '01a224876b5a77438152084f7dee7a0e', '2026-03-02 05:00:00+00'),
	('01a22487-6b5c-76f6-bdc0-d398532dcf90', 'admin', 'POST /admin/v1/coupons', 'couponId=2', '{"couponCode":"HANGHAE8888","discountType":"PERCENTAGE","discountAmount":33,"totalQuantity":9,"opensAt":null,"closesAt":null,"expiredAt":"2026-03-03 14:00:00"}', 201, '01a224876b5c76f6bdc0d397394e0990', '2026-03-02 05:00:00+00'),
	('01a22487-6b85-772c-8868-ced521879a52', 'admin', 'PATCH /admin/v1/products/{productId}', 'productId=2', '{"productName":"새 이름","price":13000,"category":"TOP","stockDelta":5}', 200, '01a224876b85772c8868ced4107f41d3', '2026-03-02 05:11:40+00'),
	('01a22487-6b87-775e-93da-c90ff07ea8b7', 'admin', 'PATCH /admin/v1/products/{productId}', 'productId=2', '{"productName":null,"price":null,"category":null,"stockDelta":-4}', 200, '01a224876b87775e93dac90e711dddfe', '2026-03-02 05:11:40+00'),
	('01a22487-6b89-77d5-b128-55d471b2a387', 'admin', 'PATCH /admin/v1/coupons/{couponId}', 'couponId=2', '{"opensAt":null,"closesAt":"2026-03-02 14:11:40"}', 200, '01a224876b8977d5b12855d347d51c7e', '2026-03-02 05:11:40+00'),
	('01a22487-6b8a-779e-98be-6949ec6aff45', 'admin', 'PATCH /admin/v1/coupons/{couponId}', 'couponId=2', '{"opensAt":null,"closesAt":"2026-03-02 15:11:40"}', 200, '01a224876b8a779e98be694876d8ddfe', '2026-03-02 05:11:40+00'),
	('01a22487-6bbe-757b-96b2-04256da7d83e', 'admin', 'POST /admin/v1/users', 'userId=10', '{"userName":"이다은","balance":50000}', 201, '01a224876bbe757b96b20424c09a9e9f', '2026-03-02 05:11:40+00'),
	('01a22487-6bc0-7502-9f1e-e8a6054afaa3', 'admin', 'POST /admin/v1/users', 'userId=11', '{"userName":"이다은","balance":9000}', 201, '01a224876bc075029f1ee8a5b0bcd565', '2026-03-02 05:11:40+00'),
	('01a22487-6bc2-7607-84f0-fb6b5c6d28a7', 'admin', 'POST /admin/v1/products', 'productId=4', '{"productName":"나이키 에어포스","price":1000,"stockQuantity":20,"category":"SHOES"}', 201, '01a224876bc2760784f0fb6a68b556ff', '2026-03-02 05:11:40+00'),
	('01a22487-6bc4-764b-adea-e6abdd0fe6da', 'admin', 'POST /admin/v1/products', 'productId=5', '{"productName":"나이키 에어포스","price":250,"stockQuantity":20,"category":"SHOES"}', 201, '01a224876bc4764badeae6aae016aa73', '2026-03-02 05:11:40+00'),
	('01a22487-6bc6-7591-860a-1c2fcafe2a01', 'admin', 'POST /admin/v1/coupons', 'couponId=3', '{"couponCode":"HANGHAE8888","discountType":"FIXED","discountAmount":300,"totalQuantity":5,"opensAt":null,"closesAt":null,"expiredAt":"2026-03-03 14:11:40"}', 201, '01a224876bc67591860a1c2eee074db6', '2026-03-02 05:11:40+00');


--
-- Data for Name: order_lines; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.order_lines VALUES
	(3, 1, 2, 49900, 0),
	(3, 2, 3, 12000, 1),
	(5, 1, 2, 49900, 0),
	(5, 2, 3, 12000, 1),
	(7, 1, 1, 49900, 0),
	(9, 1, 8, 49900, 0),
	(11, 2, 5, 12000, 0),
	(13, 3, 2, 0, 0),
	(15, 2, 1, 12000, 0),
	(17, 3, 1, 0, 0);


--
-- Data for Name: order_totals; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.order_totals VALUES
	(1, 'CANCELLED', 3),
	(1, 'FAILED', 1),
	(1, 'PAID', 3),
	(1, 'PENDING', 1);


--
-- Data for Name: orders; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.orders VALUES
	(17, 1, 'PENDING', 0, 0, 0, NULL, '2026-03-02 05:11:40+00', '2026-03-02 05:21:40+00', NULL, NULL, NULL, NULL),
	(15, 1, 'CANCELLED', 12000, 1000, 11000, 1, '2026-03-02 05:00:00+00', '2026-03-02 05:10:00+00', NULL, '2026-03-02 05:11:40+00', 'EXPIRED', NULL),
	(13, 1, 'PAID', 0, 0, 0, NULL, '2026-03-02 05:00:00+00', '2026-03-02 05:10:00+00', '2026-03-02 05:00:00+00', NULL, NULL, '2026-03-02'),
	(11, 1, 'FAILED', 60000, 1000, 59000, 1, '2026-03-02 05:00:00+00', '2026-03-02 05:10:00+00', NULL, '2026-03-02 05:00:00+00', 'PAYMENT_DECLINED', NULL),
	(9, 1, 'PAID', 399200, 0, 399200, NULL, '2026-03-02 05:00:00+00', '2026-03-02 05:10:00+00', '2026-03-02 05:00:00+00', NULL, NULL, '2026-03-02'),
	(7, 1, 'CANCELLED', 49900, 1000, 48900, 1, '2026-03-02 05:00:00+00', '2026-03-02 05:10:00+00', NULL, '2026-03-02 05:00:00+00', 'CANCELLED_BY_USER', NULL),
	(5, 1, 'CANCELLED', 135800, 1000, 134800, 1, '2026-03-02 05:00:00+00', '2026-03-02 05:10:00+00', '2026-03-02 05:00:00+00', '2026-03-02 05:00:00+00', 'REFUNDED', '2026-03-02'),
	(3, 1, 'PAID', 135800, 44814, 90986, 2, '2026-03-02 05:00:00+00', '2026-03-02 05:10:00+00', '2026-03-02 05:00:00+00', NULL, NULL, '2026-03-02');


--
-- Data for Name: payments; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.payments VALUES
	(11, 13, 1, 'CARD', 'BALANCE', 'PAID', 0, '01a22487-6b7d-76d8-ad47-0d56e844674c', NULL, '2026-03-02 05:00:00+00', '2026-03-02 05:00:00+00', NULL, NULL, NULL),
	(7, 9, 1, 'TOSS', 'BALANCE', 'PAID', 399200, '01a22487-6b79-7454-b2f5-a6bfab7525ff', NULL, '2026-03-02 05:00:00+00', '2026-03-02 05:00:00+00', NULL, NULL, NULL),
	(5, 5, 1, 'KAKAO_PAY', 'BALANCE', 'REFUNDED', 134800, '01a22487-6b70-74e4-8142-42e0116c1315', NULL, '2026-03-02 05:00:00+00', '2026-03-02 05:00:00+00', '2026-03-02 05:00:00+00', NULL, NULL),
	(3, 3, 1, 'CARD', 'BALANCE', 'PAID', 90986, '01a22487-6b6b-7320-a42b-18c9ccd987bd', NULL, '2026-03-02 05:00:00+00', '2026-03-02 05:00:00+00', NULL, NULL, NULL);


--
-- Data for Name: products; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.products VALUES
	(2, '새 이름', 'TOP', 13000, 7, 0, 3, 10, '2026-03-02 05:00:00+00', 0),
	(1, '나이키 에어포스', 'SHOES', 49900, 30, 0, 10, 40, '2026-03-02 05:00:00+00', 0),
	(3, '나이키 에어포스', 'SHOES', 0, 0, 1, 2, 3, '2026-03-02 05:00:00+00', 0);


--
-- Data for Name: projection_positions; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.projection_positions VALUES
	(0, 1, 23, '1795909184397-0', '2026-11-28 23:39:44.400856+00'),
	(1, 1, 25, '1795909184388-0', '2026-11-28 23:39:44.420165+00');


--
-- Data for Name: stock_holds; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.stock_holds VALUES
	(0, 11, 1, 'RELEASED', '2:5:12000'),
	(0, 3, 1, 'SETTLED', '2:3:12000'),
	(0, 5, 1, 'REFUNDED', '2:3:12000'),
	(0, 15, 1, 'RELEASED', '2:1:12000');


--
-- Data for Name: store; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.store VALUES
	(true, '4796392a-f08e-473b-ac61-27b010ec50ee', 2, '2026-11-28 23:39:44.286494+00', 'redis');


--
-- Data for Name: user_coupons; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.user_coupons VALUES
	(1, 2, 2, 'AVAILABLE', NULL, '2026-03-02 05:00:00+00', NULL),
	(2, 2, 2, 'AVAILABLE', NULL, '2026-03-02 05:00:00+00', NULL),
	(1, 1, 1, 'AVAILABLE', NULL, '2026-03-02 05:00:00+00', NULL),
	(2, 1, 1, 'USED', 3, '2026-03-02 05:00:00+00', '2026-03-02 05:00:00+00');


--
-- Data for Name: users; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.users VALUES
	(2, '이다은', 100021, '2026-03-02 05:00:00+00'),
	(4, '손님4', 3000, '2026-03-02 05:00:00+00'),
	(6, '손님6', 3000, '2026-03-02 05:00:00+00'),
	(8, '손님8', 3000, '2026-03-02 05:00:00+00'),
	(1, '이다은', 29814, '2026-03-02 05:00:00+00'),
	(3, '손님3', 3000, '2026-03-02 05:00:00+00'),
	(5, '손님5', 3000, '2026-03-02 05:00:00+00'),
	(7, '손님7', 3000, '2026-03-02 05:00:00+00'),
	(9, '손님9', 3000, '2026-03-02 05:00:00+00');


--
-- Data for Name: watermarks; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Name: _sqlx_migrations _sqlx_migrations_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public._sqlx_migrations
    ADD CONSTRAINT _sqlx_migrations_pkey PRIMARY KEY (version);


--
-- Name: balance_entries balance_entries_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.balance_entries
    ADD CONSTRAINT balance_entries_pk PRIMARY KEY (user_id, entry_no);


--
-- Name: campaigns campaigns_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.campaigns
    ADD CONSTRAINT campaigns_pk PRIMARY KEY (id);


--
-- Name: far_coupons far_coupons_issue_no_unique; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.far_coupons
    ADD CONSTRAINT far_coupons_issue_no_unique UNIQUE (coupon_id, issue_no);


--
-- Name: far_coupons far_coupons_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.far_coupons
    ADD CONSTRAINT far_coupons_pk PRIMARY KEY (coupon_id, user_id);


--
-- Name: id_sequences id_sequences_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.id_sequences
    ADD CONSTRAINT id_sequences_pk PRIMARY KEY (name);


--
-- Name: idempotency_records idempotency_records_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.idempotency_records
    ADD CONSTRAINT idempotency_records_pk PRIMARY KEY (partition, digest);


--
-- Name: operator_acts operator_acts_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.operator_acts
    ADD CONSTRAINT operator_acts_pk PRIMARY KEY (id);


--
-- Name: order_lines order_lines_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.order_lines
    ADD CONSTRAINT order_lines_pk PRIMARY KEY (order_id, product_id);


--
-- Name: order_totals order_totals_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.order_totals
    ADD CONSTRAINT order_totals_pk PRIMARY KEY (partition, status);


--
-- Name: orders orders_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.orders
    ADD CONSTRAINT orders_pk PRIMARY KEY (id);


--
-- Name: payments payments_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.payments
    ADD CONSTRAINT payments_pk PRIMARY KEY (id);


--
-- Name: payments payments_receipt_unique; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.payments
    ADD CONSTRAINT payments_receipt_unique UNIQUE (receipt);


--
-- Name: products products_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.products
    ADD CONSTRAINT products_pk PRIMARY KEY (id);


--
-- Name: projection_positions projection_positions_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.projection_positions
    ADD CONSTRAINT projection_positions_pk PRIMARY KEY (partition);


--
-- Name: stock_holds stock_holds_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.stock_holds
    ADD CONSTRAINT stock_holds_pk PRIMARY KEY (partition, order_id);


--
-- Name: store store_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.store
    ADD CONSTRAINT store_pk PRIMARY KEY (singleton);


--
-- Name: user_coupons user_coupons_issue_no_unique; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.user_coupons
    ADD CONSTRAINT user_coupons_issue_no_unique UNIQUE (coupon_id, issue_no);


--
-- Name: user_coupons user_coupons_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.user_coupons
    ADD CONSTRAINT user_coupons_pk PRIMARY KEY (user_id, coupon_id);


--
-- Name: users users_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pk PRIMARY KEY (id);


--
-- Name: watermarks watermarks_pk; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.watermarks
    ADD CONSTRAINT watermarks_pk PRIMARY KEY (partition);


--
-- Name: campaigns_withheld; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX campaigns_withheld ON public.campaigns USING btree (id) WHERE (withheld > 0);


--
-- Name: dead_letters_once; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX dead_letters_once ON public.dead_letters USING btree (partition, stream_id, COALESCE(seq, ('-1'::integer)::bigint));


--
-- Name: idempotency_records_expiry; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idempotency_records_expiry ON public.idempotency_records USING btree (expires_at);


--
-- Name: operator_acts_newest; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX operator_acts_newest ON public.operator_acts USING btree (at DESC, id DESC);


--
-- Name: operator_acts_of_operator; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX operator_acts_of_operator ON public.operator_acts USING btree (operator, at DESC, id DESC);


--
-- Name: orders_status_newest; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX orders_status_newest ON public.orders USING btree (status, id DESC);


--
-- Name: orders_user; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX orders_user ON public.orders USING btree (user_id, id DESC);


--
-- Name: payments_one_per_order; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX payments_one_per_order ON public.payments USING btree (order_id);


--
-- Name: products_withheld; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX products_withheld ON public.products USING btree (id) WHERE (withheld > 0);


--
-- Name: orders orders_changed; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER orders_changed AFTER UPDATE ON public.orders REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION public.count_orders();


--
-- Name: orders orders_gone; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER orders_gone AFTER DELETE ON public.orders REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION public.count_orders();


--
-- Name: orders orders_new; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER orders_new AFTER INSERT ON public.orders REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION public.count_orders();


--
-- PostgreSQL database dump complete
--



-- What an order must have for a coupon of the campaign to count, as Redis keeps it: 'least total|most discount|products|categories'.
-- Nothing: no conditions.

ALTER TABLE campaigns ADD COLUMN conditions text NOT NULL DEFAULT '';

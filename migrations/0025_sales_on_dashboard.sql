-- What the operators' pages of sales read: products with terms of sale, and the orders that count against a limit.

CREATE INDEX products_with_terms ON products (opens_at DESC NULLS LAST, id DESC)
    WHERE opens_at IS NOT NULL OR closes_at IS NOT NULL OR limit_per_user IS NOT NULL;
-- Lines of products without a limit are in neither of them.
CREATE INDEX order_lines_of_product_limit ON order_lines (product_id, order_id) WHERE limit_group = '';
CREATE INDEX order_lines_of_group_limit ON order_lines (limit_group, order_id) WHERE limit_group > '';

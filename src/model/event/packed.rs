//! Lists that the scripts pack into one text.

use super::*;

/// Unpacks lines from `product:quantity:price,...`, with `:group` after the price of a line that counts against a limit; `None` if the
/// text has another form.
pub fn unpack_lines(packed: &str) -> Option<Vec<OrderLine>> {
    if packed.is_empty() {
        return Some(Vec::new());
    }
    let lines: Vec<OrderLine> = packed.split(',').take(MAX_ORDER_LINES + 1).map(unpack_line).collect::<Option<_>>()?;
    (lines.len() <= MAX_ORDER_LINES).then_some(lines)
}

/// Packs lines as [`unpack_lines`] reads them.
pub fn pack_lines(lines: &[OrderLine]) -> String {
    let limit = |line: &OrderLine| line.limit.map(|limit| format!(":{}", limit.as_str())).unwrap_or_default();
    let packed =
        lines.iter().map(|line| format!("{}:{}:{}{}", line.product_id, line.quantity, line.price, limit(line)));
    packed.collect::<Vec<_>>().join(",")
}

/// Unpacks the parts of a reply, each preceded by its length in bytes (`4:PAID2:17`); `None` if the text has another form.
pub fn unpack_reply(mut packed: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    while !packed.is_empty() {
        let (length, rest) = packed.split_once(':')?;
        let (part, rest) = rest.split_at_checked(length.parse().ok()?)?;
        parts.push(part);
        packed = rest;
    }
    Some(parts)
}

fn unpack_line(packed: &str) -> Option<OrderLine> {
    let mut parts = packed.split(':');
    let product_id = ProductId::new(parts.next()?.parse().ok()?)?;
    let quantity = parts.next()?.parse().ok().filter(|q| (1..=MAX_LINE_QUANTITY).contains(q))?;
    let price = parts.next()?.parse().ok().filter(|p| (0..=MAX_PRICE).contains(p))?;
    let limit = parts.next().map(str::parse).transpose().ok()?;
    parts.next().is_none().then_some(OrderLine { product_id, quantity, price, limit })
}

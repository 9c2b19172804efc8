//! The packed events of a batch, and those that stand for two decisions.

use std::borrow::Cow;

use super::{decode::NEXT_EVENT, *};

/// The kind of a packed event that is an order and its payment.
pub(super) const CHECKED_OUT: &str = "order_checked_out";

/// The packed events of a batch, one for each decision.
pub(super) fn packed_events(version: i64, packed: &str) -> Vec<Cow<'_, str>> {
    let events = packed.split(NEXT_EVENT);
    if version == BATCH_OF_CHECKOUTS {
        events.flat_map(checkout_events).collect()
    } else {
        events.map(Cow::Borrowed).collect()
    }
}

/// The packed event of the `nth` decision of a batch.
pub(super) fn packed_event(version: i64, packed: &str, mut nth: usize) -> Option<Cow<'_, str>> {
    if version != BATCH_OF_CHECKOUTS {
        return packed.split(NEXT_EVENT).nth(nth).map(Cow::Borrowed);
    }
    for packed in packed.split(NEXT_EVENT) {
        let count = 1 + usize::from(first_of_two(packed).is_some());
        if nth < count {
            return checkout_events(packed).into_iter().nth(nth);
        }
        nth -= count;
    }
    None
}

/// The number of the first decision of a checkout; the other one has the next number.
fn first_of_two(packed: &str) -> Option<i64> {
    packed.split(SEPARATOR).nth(1)?.parse().ok().filter(|seq| (0..i64::MAX).contains(seq))
}

/// The two decisions of an order that was paid when it was placed, `order_placed` and `order_paid`, as two calls would have packed
/// them. One that is not readable is so under both numbers, or without a number under none.
fn checkout_events(packed: &str) -> Vec<Cow<'_, str>> {
    let Some(first) = first_of_two(packed) else { return vec![Cow::Borrowed(packed)] };
    let next = (first + 1).to_string();
    let joined = |parts: &[&[&str]]| Cow::Owned(parts.concat().join(&SEPARATOR.to_string()));
    let parts: Vec<&str> = packed.split(SEPARATOR).collect();
    let &[
        CHECKED_OUT,
        seq,
        at,
        rid,
        order,
        user,
        lines,
        total,
        discount,
        price,
        coupon,
        expires_at,
        payment,
        kind,
        receipt,
        day,
        before,
        after,
        entry_no,
        prev,
        ref record @ ..,
    ] = &parts[..]
    else {
        return [parts[1], &next].map(|seq| joined(&[&[CHECKED_OUT, seq], &parts[2..]])).into();
    };
    let placed = ["order_placed", seq, at, rid, order, user, lines, total, discount, price, coupon, expires_at];
    let paid = ["order_paid", &next, at, rid, order, user, payment, kind, price, receipt, "BALANCE", "", lines, coupon];
    vec![joined(&[&placed]), joined(&[&paid, &[day, price, before, after, entry_no, prev], record])]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKOUT: &str = "order_checked_out 9 1772427600000 rid 7 3 1:2:300 600 100 500 4 1772427700000 8 CARD r-1 20260302 900 400 2 1-0";

    fn entry(version: i64, events: &str) -> Vec<(String, String)> {
        let packed = events.replace(' ', "\u{1f}").replace('\n', "\u{1e}");
        [("v", version.to_string()), ("epoch", "1".to_owned()), ("events", packed)]
            .map(|(name, value)| (name.to_owned(), value))
            .into()
    }

    #[test]
    fn checkout_decoded_as_order_and_its_payment() {
        let separate = "order_placed 9 1772427600000 rid 7 3 1:2:300 600 100 500 4 1772427700000\n\
             order_paid 10 1772427600000 rid 7 3 8 CARD 500 r-1 BALANCE  1:2:300 4 20260302 500 900 400 2 1-0";
        for record in ["", " 0a 0b 4:PAID"] {
            let checkout = entry(BATCH_OF_CHECKOUTS, &format!("{CHECKOUT}{record}"));
            let separate = entry(BATCH, &format!("{separate}{record}"));
            let events = |fields| -> Vec<String> {
                decode(fields)
                    .into_iter()
                    .map(|decoded| format!("{:?} {:?}", decoded.position, decoded.event.unwrap()))
                    .collect()
            };
            assert_eq!(events(&checkout), events(&separate));
            for nth in 0..3 {
                assert_eq!(fields_of(&checkout, nth)[1..], fields_of(&separate, nth)[1..], "{nth}");
            }
        }
    }

    #[test]
    fn both_decisions_of_broken_checkout_are_dead_letters() {
        let short = CHECKOUT.rsplit_once(' ').unwrap().0;
        let places = |events: &str| -> Vec<Option<(i64, i64)>> {
            let decoded = decode(&entry(BATCH_OF_CHECKOUTS, events));
            assert!(decoded.iter().any(|decoded| decoded.event.is_err()), "{decoded:?}");
            decoded.iter().map(|decoded| decoded.position).collect()
        };
        let both = [Some((1, 9)), Some((1, 10))];
        assert_eq!(places(short), both);
        assert_eq!(places("order_checked_out 9"), both);
        // Of an unknown kind, and of one that no entry of this version has.
        assert_eq!(places(&CHECKOUT.replace("order_checked", "order_checkeD")), both);
        assert_eq!(places("balance_charged 9 1772427600000 rid 3 2 5 0 5 "), both);
        assert_eq!(places("order_placed 9 1772427600000 rid 7 3 1:2:300 600 100 500 4 1772427700000"), both);
        assert_eq!(places(&format!("{CHECKOUT} 0a")), both);
        assert_eq!(places("order_checked_out x"), [None]);
        assert_eq!(places("order_checked_out"), [None]);
        // Each is one event when it is retried, and names what it lacks.
        for (nth, seq) in [(0, 9), (1, 10)] {
            let decoded = decode(&fields_of(&entry(BATCH_OF_CHECKOUTS, short), nth));
            assert_eq!((decoded.len(), decoded[0].position), (1, Some((1, seq))));
            assert_eq!(decoded[0].event.as_ref().unwrap_err().0, "order_checked_out does not have its parts");
        }
        // A version that has no such text, and one of a newer program.
        assert!(decode(&entry(BATCH, CHECKOUT))[0].event.is_err());
        assert!(is_newer(&entry(BATCH_OF_CHECKOUTS + 1, CHECKOUT)) && !is_newer(&entry(BATCH_OF_CHECKOUTS, CHECKOUT)));
    }
}

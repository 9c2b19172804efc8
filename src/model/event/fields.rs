//! The fields of one event, read with their types and bounds.

use std::str::FromStr;

use super::{decode::NEXT_EVENT, *};

/// The fields of one event. A linear search is fast enough for their number.
pub(super) struct EventFields<'a>(pub(super) Vec<(&'a str, &'a str)>);

impl<'a> EventFields<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(field, _)| *field == name).map(|(_, value)| *value)
    }

    pub(super) fn text(&self, name: &str) -> Result<&'a str, BadEvent> {
        self.get(name).ok_or_else(|| BadEvent(format!("field {name} is missing")))
    }

    pub(super) fn bad(name: &str, value: &str) -> BadEvent {
        BadEvent(format!("field {name} is {:?}", value.chars().take(40).collect::<String>()))
    }

    pub(super) fn int(&self, name: &str) -> Result<i64, BadEvent> {
        let text = self.text(name)?;
        let safe = |n: &i64| (-MAX_SAFE_INTEGER..=MAX_SAFE_INTEGER).contains(n);
        text.parse().ok().filter(safe).ok_or_else(|| Self::bad(name, text))
    }

    /// A change of units or coupons. The bound of [`MAX_STOCK`] keeps sums over a batch from overflowing.
    pub(super) fn change(&self, name: &str) -> Result<i64, BadEvent> {
        let n = self.int(name)?;
        if (-MAX_STOCK..=MAX_STOCK).contains(&n) { Ok(n) } else { Err(BadEvent(format!("field {name} is too much"))) }
    }

    pub(super) fn units(&self, name: &str) -> Result<i64, BadEvent> {
        self.count(name)?;
        self.change(name)
    }

    pub(super) fn count(&self, name: &str) -> Result<i64, BadEvent> {
        let n = self.int(name)?;
        if n >= 0 { Ok(n) } else { Err(BadEvent(format!("field {name} is negative"))) }
    }

    pub(super) fn id<T>(&self, name: &str, new: fn(i64) -> Option<T>) -> Result<T, BadEvent> {
        new(self.int(name)?).ok_or_else(|| BadEvent(format!("field {name} is no id")))
    }

    pub(super) fn optional_id<T>(&self, name: &str, new: fn(i64) -> Option<T>) -> Result<Option<T>, BadEvent> {
        if self.text(name)?.is_empty() { Ok(None) } else { self.id(name, new).map(Some) }
    }

    pub(super) fn name<T: FromStr>(&self, name: &str) -> Result<T, BadEvent> {
        let text = self.text(name)?;
        text.parse().map_err(|_| Self::bad(name, text))
    }

    pub(super) fn optional(&self, name: &str) -> Result<Option<String>, BadEvent> {
        self.text(name).map(|text| (!text.is_empty()).then(|| text.to_owned()))
    }

    pub(super) fn time(&self, name: &str) -> Result<Millis, BadEvent> {
        let at = Millis(self.count(name)?);
        if at <= Millis::MAX { Ok(at) } else { Err(BadEvent(format!("field {name} is no time"))) }
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, BadEvent> {
        match self.text(name)? {
            "1" => Ok(true),
            "0" => Ok(false),
            other => Err(Self::bad(name, other)),
        }
    }

    /// A flag that older events do not have.
    pub(super) fn optional_flag(&self, name: &str) -> Result<bool, BadEvent> {
        if self.get(name).is_some() { self.flag(name) } else { Ok(false) }
    }

    pub(super) fn lines(&self, name: &str) -> Result<Vec<OrderLine>, BadEvent> {
        unpack_lines(self.text(name)?).ok_or_else(|| BadEvent(format!("field {name} is no list of lines")))
    }

    /// Lines that only events of earlier releases have.
    pub(super) fn earlier_lines(&self, name: &str) -> Result<Vec<OrderLine>, BadEvent> {
        if self.get(name).is_some() { self.lines(name) } else { Ok(Vec::new()) }
    }

    /// A count that events of earlier releases do not have.
    pub(super) fn later_count(&self, name: &str) -> Result<i64, BadEvent> {
        if self.get(name).is_some() { self.count(name) } else { Ok(0) }
    }

    pub(super) fn hold_state(&self, name: &str) -> Result<RemoteHoldState, BadEvent> {
        match self.text(name)? {
            "HELD" => Ok(RemoteHoldState::Held),
            "SETTLED" => Ok(RemoteHoldState::Settled),
            "RELEASED" => Ok(RemoteHoldState::Released),
            "REFUNDED" => Ok(RemoteHoldState::Refunded),
            other => Err(Self::bad(name, other)),
        }
    }

    /// A value that older events do not have: nothing is its default.
    pub(super) fn later<T: FromStr>(&self, name: &str) -> Result<T, BadEvent> {
        let text = self.get(name).unwrap_or_default();
        text.parse().map_err(|_| Self::bad(name, text))
    }

    /// The operator who asked for a refund, and the reason; `None` if its user did.
    pub(super) fn operator(&self) -> Option<(String, String)> {
        let operator = self.get("operator").filter(|operator| !operator.is_empty())?;
        Some((operator.to_owned(), self.get("why").unwrap_or_default().to_owned()))
    }

    pub(super) fn partition(&self, name: &str) -> Result<Partition, BadEvent> {
        let text = self.text(name)?;
        text.parse().map(Partition).map_err(|_| Self::bad(name, text))
    }

    /// The id of each user, whether the user is new, and the name.
    pub(super) fn users(&self, name: &str) -> Result<Vec<PutUser>, BadEvent> {
        let text = self.text(name)?;
        let user = |packed: &str| {
            let mut parts = packed.split(SEPARATOR);
            let (id, is_new, name) = (parts.next()?, parts.next()?, parts.next()?);
            let is_new = match is_new {
                "1" => true,
                "0" => false,
                _ => return None,
            };
            let user = UserId::new(id.parse().ok()?)?;
            parts.next().is_none().then(|| PutUser { user, is_new, name: name.to_owned() })
        };
        let users = text.split(NEXT_EVENT).take(MAX_USERS_PER_EVENT as usize + 1).map(user);
        let users: Option<Vec<PutUser>> = users.collect();
        users.filter(|users| users.len() <= MAX_USERS_PER_EVENT as usize).ok_or_else(|| Self::bad(name, text))
    }

    /// `id:count,...`
    pub(super) fn counts<T>(&self, name: &str, new: fn(i64) -> Option<T>) -> Result<Vec<(T, i64)>, BadEvent> {
        let text = self.text(name)?;
        let pair = |packed: &str| {
            let (id, count) = packed.split_once(':')?;
            Some((new(id.parse().ok()?)?, count.parse().ok().filter(|n| (1..=MAX_STOCK).contains(n))?))
        };
        let pairs = text.split(',').filter(|packed| !packed.is_empty()).map(pair);
        pairs.collect::<Option<_>>().ok_or_else(|| Self::bad(name, text))
    }

    pub(super) fn record(&self) -> Result<Option<Record>, BadEvent> {
        if self.get("key").is_none() {
            return Ok(None);
        }
        let (digest, fingerprint, reply) = (self.text("key")?, self.text("print")?, self.text("reply")?);
        unpack_reply(reply).ok_or_else(|| Self::bad("reply", reply))?;
        Ok(Some(Record { digest: digest.into(), fingerprint: fingerprint.into(), reply: reply.into() }))
    }

    /// Whether the money went through a gateway.
    pub(super) fn by_gateway(&self) -> Result<bool, BadEvent> {
        match self.text("method")? {
            "GATEWAY" => Ok(true),
            "BALANCE" => Ok(false),
            other => Err(Self::bad("method", other)),
        }
    }

    /// The change of the balance; `None` if `amount` is 0.
    pub(super) fn entry_if_any(
        &self,
        kind: TransactionType,
        amount: &str,
        at: Millis,
    ) -> Result<Option<BalanceEntry>, BadEvent> {
        if self.count(amount)? == 0 { Ok(None) } else { self.entry(kind, amount, at).map(Some) }
    }

    pub(super) fn entry(&self, kind: TransactionType, amount: &str, at: Millis) -> Result<BalanceEntry, BadEvent> {
        Ok(BalanceEntry {
            user_id: self.id("user", UserId::new)?,
            entry_no: self.count("entry_no")?,
            kind,
            amount: self.count(amount)?,
            before: self.count("before")?,
            after: self.count("after")?,
            // A charge has no order, and a forfeited balance neither.
            order_id: match kind {
                TransactionType::Charge => None,
                _ if self.get("kind") == Some("user_forgotten") => None,
                _ => Some(self.id("order", OrderId::new)?),
            },
            at,
        })
    }
}

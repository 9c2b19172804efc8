//! The columns of a file, and what their cells become: the fields of the API's requests.

use anyhow::{bail, ensure};
use serde_json::{Map, Number, Value, value::RawValue};

/// The columns of one kind of rows.
pub(super) struct Columns {
    pub id: &'static str,
    pub all: &'static [Column],
}

/// A column: its name in the API, the short name that tables often have, and its kind of value.
pub(super) struct Column {
    name: &'static str,
    short: &'static str,
    cell: Cell,
    is_required: bool,
    /// Whether no value takes away what a record has.
    takes_away: bool,
}

#[derive(Clone, Copy)]
enum Cell {
    Number,
    Text,
    /// A wall-clock time.
    Time,
    /// Separated by `|`.
    Numbers,
    Texts,
}

const fn required(name: &'static str, short: &'static str, cell: Cell) -> Column {
    Column { name, short, cell, is_required: true, takes_away: false }
}

const fn optional(name: &'static str, cell: Cell) -> Column {
    Column { name, short: name, cell, is_required: false, takes_away: false }
}

/// A term of sale: where its column is missing, a product keeps it.
const fn term(name: &'static str, cell: Cell) -> Column {
    Column { name, short: name, cell, is_required: false, takes_away: true }
}

pub(super) const USERS: Columns = Columns {
    id: "userId",
    all: &[
        required("userId", "id", Cell::Number),
        required("userName", "name", Cell::Text),
        optional("balance", Cell::Number),
    ],
};

pub(super) const PRODUCTS: Columns = Columns {
    id: "productId",
    all: &[
        required("productId", "id", Cell::Number),
        required("productName", "name", Cell::Text),
        required("price", "price", Cell::Number),
        required("stockQuantity", "stock", Cell::Number),
        required("category", "category", Cell::Text),
        term("opensAt", Cell::Time),
        term("closesAt", Cell::Time),
        term("limitPerUser", Cell::Number),
        term("limitGroup", Cell::Text),
    ],
};

pub(super) const COUPONS: Columns = Columns {
    id: "couponId",
    all: &[
        required("couponId", "id", Cell::Number),
        required("couponCode", "code", Cell::Text),
        required("discountType", "type", Cell::Text),
        required("discountAmount", "amount", Cell::Number),
        required("totalQuantity", "quantity", Cell::Number),
        optional("opensAt", Cell::Time),
        optional("closesAt", Cell::Time),
        required("expiredAt", "expiredAt", Cell::Time),
        optional("minOrderPrice", Cell::Number),
        optional("maxDiscountPrice", Cell::Number),
        optional("productIds", Cell::Numbers),
        optional("categories", Cell::Texts),
    ],
};

/// What MySQL and others write for no value.
const NULLS: [&str; 3] = ["", "\\N", "NULL"];

/// The columns of a CSV file in their order; `None` of one that is ignored.
pub(super) struct Header(Vec<Option<&'static Column>>);

impl Columns {
    /// The column of a name, `userId`, `user_id` or `id`, in any case.
    fn find(&'static self, name: &str) -> Option<&'static Column> {
        let plain = |name: &str| name.replace('_', "").to_ascii_lowercase();
        let name = plain(name);
        self.all.iter().find(|column| plain(column.name) == name || plain(column.short) == name)
    }

    /// # Errors
    /// A column is unknown, missing, or there twice.
    pub fn header(&'static self, names: &[String], ignored: &[String]) -> anyhow::Result<Header> {
        let mut columns: Vec<Option<&'static Column>> = Vec::with_capacity(names.len());
        for name in names {
            if ignored.contains(name) {
                columns.push(None);
                continue;
            }
            let Some(column) = self.find(name) else {
                let known: Vec<&str> = self.all.iter().map(|column| column.name).collect();
                bail!("the column {name:?} is none of {known:?}: pass --ignore {name:?} to leave it out");
            };
            let is_twice = columns.iter().flatten().any(|known| known.name == column.name);
            ensure!(!is_twice, "the column {} is there twice", column.name);
            columns.push(Some(column));
        }
        for column in self.all.iter().filter(|column| column.is_required) {
            let is_there = columns.iter().flatten().any(|known| known.name == column.name);
            ensure!(is_there, "the column {} is missing: the first line must name the columns", column.name);
        }
        Ok(Header(columns))
    }

    /// The fields of an object of JSON Lines, by their names in the API.
    pub fn named(
        &'static self,
        written: &[(String, &RawValue)],
        ignored: &[String],
    ) -> Result<Map<String, Value>, String> {
        let (mut fields, mut seen) = (Map::new(), Vec::with_capacity(written.len()));
        for (name, value) in written {
            if ignored.contains(name) {
                continue;
            }
            let column = self.find(name).ok_or_else(|| format!("the field {name:?} is unknown"))?;
            if seen.contains(&column.name) {
                return Err(format!("the field {} is there twice", column.name));
            }
            seen.push(column.name);
            if let Some(value) = column.written(value).map_err(|error| format!("{}: {error}", column.name))? {
                fields.insert(column.name.to_owned(), value);
            }
        }
        Ok(fields)
    }
}

impl Header {
    /// The fields of a row, by their names in the API.
    pub fn fields(&self, cells: &[&[u8]]) -> Result<Map<String, Value>, String> {
        if cells.len() != self.0.len() {
            return Err(format!("the row has {} fields, and the header {}", cells.len(), self.0.len()));
        }
        let mut fields = Map::new();
        for (column, cell) in self.0.iter().zip(cells).filter_map(|(column, cell)| Some(((*column)?, cell))) {
            let cell = std::str::from_utf8(cell).map_err(|_| format!("{} is no UTF-8", column.name))?;
            if cell.contains(['\n', '\r']) {
                return Err(format!("{} has a line break: is a quote opened that nothing closes?", column.name));
            }
            if let Some(value) = column.value(cell) {
                fields.insert(column.name.to_owned(), value);
            }
        }
        Ok(fields)
    }
}

impl Column {
    /// The value of a cell; `None` of one without.
    fn value(&self, cell: &str) -> Option<Value> {
        let parts = || cell.split('|').map(str::trim);
        if NULLS.contains(&cell) {
            return self.takes_away.then_some(Value::Null);
        }
        Some(match self.cell {
            Cell::Number => number(cell),
            Cell::Text => Value::String(cell.to_owned()),
            Cell::Time => Value::String(iso(cell)),
            Cell::Numbers => parts().map(number).collect(),
            Cell::Texts => parts().map(Value::from).collect(),
        })
    }

    /// The value of a field of JSON Lines; `None` of one without.
    fn written(&self, value: &RawValue) -> serde_json::Result<Option<Value>> {
        let text = value.get();
        Ok(match (self.cell, serde_json::from_str(text)?) {
            (_, Value::Null) => self.takes_away.then_some(Value::Null),
            (Cell::Number, Value::Number(_)) => Some(number(text)),
            (Cell::Time, Value::String(time)) => Some(Value::String(iso(&time))),
            (_, value) => Some(value),
        })
    }
}

/// A number as it is written. One that is whole only as a double stays a text, which is refused where the number is read, as one that
/// is no number is.
fn number(text: &str) -> Value {
    let text = text.trim();
    match serde_json::from_str::<Number>(text) {
        Ok(number) if is_whole(text) || number.as_f64().is_some_and(|double| double.fract() != 0.0) => {
            Value::Number(number)
        }
        _ => Value::String(text.to_owned()),
    }
}

/// Whether a number of JSON is whole.
fn is_whole(text: &str) -> bool {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    let zeros = whole.len() - whole.trim_end_matches('0').len();
    let Ok(exponent) = exponent.parse::<i64>() else { return false };
    match i64::try_from(fraction.len()) {
        Ok(0) => zeros == whole.trim_start_matches('-').len() || exponent >= -(zeros as i64),
        Ok(places) => places <= exponent,
        Err(_) => false,
    }
}

/// A time with a `T`, also of a database that writes a space.
fn iso(time: &str) -> String {
    match time.trim().split_once(' ') {
        Some((day, time)) => format!("{day}T{time}"),
        None => time.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_kept_exact_or_as_text() {
        for whole in ["0", "-0.0", "12000", "12000.00", "1.2e4", "120000e-1", "0e9", "0e-9", "1e3", "-7"] {
            assert!(is_whole(whole) && number(whole).is_number(), "{whole}");
        }
        for rounded in ["12000.000000000000001", "11999.9999999999999999", "120000000000000000001e-16"] {
            assert_eq!(number(rounded), Value::from(rounded), "{rounded}");
        }
        for refused_later in ["0.5", "12000.5", "1e-1", "1e99999999999999999999", "", "x", "12,000"] {
            assert!(!is_whole(refused_later) || number(refused_later).is_string(), "{refused_later}");
        }
    }
}

//! The requests of the clients, and their forms over HTTP.

use firstcome::model::Millis;
use reqwest::Method;
use serde_json::{Value, json};

use super::elsewhere::{self, BroughtKind};

/// One order in so many is paid through the gateway, if the run has one.
const BY_GATEWAY: i64 = 3;

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Issue {
        campaign: i64,
        user: i64,
    },
    Charge {
        user: i64,
        amount: i64,
    },
    Place {
        user: i64,
        lines: Vec<(i64, i64)>,
        coupon: Option<i64>,
        /// Whether it is paid from the balance in the same step.
        pays: bool,
    },
    /// `price` is the order's, `amount` the client's.
    Pay {
        order: i64,
        user: i64,
        price: i64,
        amount: i64,
    },
    Cancel {
        order: i64,
        user: i64,
    },
    /// A user refunds a part of a paid order, or an operator, who keeps the units off sale.
    Refund {
        order: i64,
        user: i64,
        line: (i64, i64),
        by_operator: bool,
    },
    /// An operator adds units to a product.
    Restock {
        product: i64,
        units: i64,
    },
    /// An operator ends a campaign's window, at a time in nanoseconds since 1970.
    Close {
        campaign: i64,
        at: u64,
    },
    /// An operator ends the sale of a product, likewise.
    EndSale {
        product: i64,
        at: u64,
    },
    /// An operator creates a user, whose name has this number.
    Create {
        version: i64,
    },
    /// An operator brings a record in under the id that it has elsewhere, or changes it to this version.
    Bring {
        kind: BroughtKind,
        id: i64,
        version: i64,
    },
    /// An operator forgets a user that may have been brought in.
    Forget {
        user: i64,
    },
    Brought {
        kind: BroughtKind,
        id: i64,
    },
    Balance {
        user: i64,
    },
    Entries {
        user: i64,
    },
    Product {
        product: i64,
    },
    Order {
        order: i64,
        user: i64,
    },
    Coupons {
        user: i64,
    },
}

impl Request {
    pub fn verb(&self) -> &'static str {
        match self {
            Request::Issue { .. } => "issue",
            Request::Charge { .. } => "charge",
            Request::Place { pays: true, .. } => "check out",
            Request::Place { .. } => "place",
            Request::Pay { .. } => "pay",
            Request::Cancel { .. } => "cancel",
            Request::Refund { .. } => "refund",
            Request::Restock { .. } => "restock",
            Request::Close { .. } => "close",
            Request::EndSale { .. } => "end sale",
            Request::Create { .. } => "create",
            Request::Bring { .. } => "bring in",
            Request::Forget { .. } => "forget",
            Request::Brought { .. } => "read what was brought in",
            Request::Balance { .. } => "read balance",
            Request::Entries { .. } => "read history",
            Request::Product { .. } => "read product",
            Request::Order { .. } => "read order",
            Request::Coupons { .. } => "read coupons",
        }
    }

    pub fn is_write(&self) -> bool {
        !self.verb().starts_with("read")
    }

    /// Whether it pays through the gateway, if the run has one.
    pub fn is_by_gateway(&self) -> bool {
        matches!(self, Request::Pay { order, .. } if order % BY_GATEWAY == 0)
    }

    /// The id of the object whose partition decides.
    pub fn owner(&self) -> i64 {
        match self {
            Request::Issue { campaign, .. } | Request::Close { campaign, .. } => *campaign,
            // The sequence of new ids is the first partition's.
            Request::Create { .. } => 0,
            Request::Bring { id, .. } | Request::Brought { id, .. } => *id,
            Request::Charge { user, .. }
            | Request::Forget { user }
            | Request::Place { user, .. }
            | Request::Balance { user }
            | Request::Entries { user }
            | Request::Coupons { user } => *user,
            Request::Pay { order, .. }
            | Request::Cancel { order, .. }
            | Request::Refund { order, .. }
            | Request::Order { order, .. } => *order,
            Request::Restock { product, .. } | Request::EndSale { product, .. } | Request::Product { product } => {
                *product
            }
        }
    }

    /// The ids of all objects of the request.
    pub fn objects(&self) -> Vec<i64> {
        let mut ids = vec![self.owner()];
        match self {
            Request::Issue { user, .. } | Request::Pay { user, .. } | Request::Cancel { user, .. } => ids.push(*user),
            Request::Refund { user, line, .. } => ids.extend([*user, line.0]),
            Request::Order { user, .. } => ids.push(*user),
            Request::Place { lines, coupon, .. } => {
                ids.extend(lines.iter().map(|(product, _)| *product).chain(*coupon));
            }
            _ => {}
        }
        ids
    }

    /// Method, path, body.
    pub fn to_http(&self) -> (Method, String, Option<Value>) {
        let (method, path, body) = match self {
            Request::Issue { campaign, user } => {
                (Method::POST, "/api/v1/coupons/issue".to_owned(), json!({"couponId": campaign, "userId": user}))
            }
            Request::Charge { user, amount } => {
                (Method::PUT, format!("/api/v1/balances/{user}"), json!({"amount": amount}))
            }
            Request::Place { user, lines, coupon, pays } => {
                let line = |(product, quantity): &(i64, i64)| json!({"productId": product, "quantity": quantity});
                let lines: Vec<Value> = lines.iter().map(line).collect();
                let mut body = json!({"userId": user, "orderProducts": lines, "userCouponId": coupon});
                if *pays {
                    body["payment"] = json!({"paymentType": "BALANCE"});
                }
                (Method::POST, "/api/v1/orders".to_owned(), body)
            }
            Request::Pay { order, user, amount, .. } => {
                let kind = if self.is_by_gateway() { "KAKAO_PAY" } else { "CARD" };
                let body = json!({"orderId": order, "userId": user, "paymentType": kind, "amount": amount});
                (Method::POST, "/api/v1/payments".to_owned(), body)
            }
            Request::Cancel { order, user } => {
                (Method::POST, format!("/api/v1/orders/{order}/cancel"), json!({"userId": user}))
            }
            Request::Refund { order, user, line: (product, quantity), by_operator } => {
                let lines = json!([{"productId": product, "quantity": quantity}]);
                match by_operator {
                    true => {
                        let body = json!({"lines": lines, "restock": false});
                        (Method::POST, format!("/admin/v1/orders/{order}/refund"), body)
                    }
                    false => {
                        let body = json!({"userId": user, "lines": lines});
                        (Method::POST, format!("/api/v1/orders/{order}/cancel"), body)
                    }
                }
            }
            Request::Restock { product, units } => {
                (Method::PATCH, format!("/admin/v1/products/{product}"), json!({"stockDelta": units}))
            }
            Request::Close { campaign, at } => {
                let at = Millis((at / 1_000_000) as i64).local(chrono_tz::Asia::Seoul);
                (Method::PATCH, format!("/admin/v1/coupons/{campaign}"), json!({"closesAt": at}))
            }
            Request::EndSale { product, at } => {
                let at = Millis((at / 1_000_000) as i64).local(chrono_tz::Asia::Seoul);
                (Method::PATCH, format!("/admin/v1/products/{product}"), json!({"closesAt": at}))
            }
            Request::Create { version } => {
                let body = json!({"userName": elsewhere::name(0, *version), "balance": elsewhere::OPENING});
                (Method::POST, "/admin/v1/users".to_owned(), body)
            }
            Request::Bring { kind, id, version } => {
                (Method::PUT, format!("/admin/v1/{}/{id}", kind.path()), kind.body(*id, *version))
            }
            Request::Forget { user } => {
                return (Method::DELETE, format!("/admin/v1/users/{user}?forfeit=true"), None);
            }
            Request::Brought { kind, id } => return (Method::GET, kind.read_path(*id), None),
            Request::Balance { user } => return (Method::GET, format!("/api/v1/balances/{user}"), None),
            Request::Entries { user } => {
                return (Method::GET, format!("/api/v1/balances/{user}/history?limit=1000"), None);
            }
            Request::Product { product } => return (Method::GET, format!("/api/v1/products/{product}"), None),
            Request::Order { order, user } => {
                return (Method::GET, format!("/api/v1/orders/{order}?userId={user}"), None);
            }
            Request::Coupons { user } => return (Method::GET, format!("/api/v1/coupons/{user}"), None),
        };
        (method, path, Some(body))
    }
}

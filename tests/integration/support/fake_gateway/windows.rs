//! What customers do at a provider, and what the provider tells the service.

use firstcome::config::{GatewayConfig, GatewayProtocol, Secret};

use super::*;
use crate::support::harness::gateways;

impl FakeGateway {
    /// The settings of this gateway, for KAKAO_PAY payments.
    pub fn config(&self) -> GatewayConfig {
        let mut config = gateways(&[("KAKAO_PAY", self.url())]);
        config.payment_provider_kakao_pay = match self.protocol {
            Protocol::Http => GatewayProtocol::Http,
            Protocol::Toss => GatewayProtocol::Toss,
            Protocol::KakaoPay => GatewayProtocol::KakaoPay,
            Protocol::PortOne => GatewayProtocol::PortOne,
        };
        config.toss_secret_key = Some(Secret::new(toss::SECRET_KEY));
        config.kakaopay_secret_key = Some(Secret::new(kakaopay::SECRET_KEY));
        config.kakaopay_cid = Some(kakaopay::CID.to_owned());
        config.portone_api_secret = Some(Secret::new(portone::API_SECRET));
        config.portone_webhook_secret = Some(Secret::new(portone::WEBHOOK_SECRET));
        config.portone_store_id = Some(portone::STORE_ID.to_owned());
        config
    }

    /// The same as variables.
    pub fn environment(&self) -> Vec<(&'static str, &str)> {
        let provider = match self.protocol {
            Protocol::Http => "http",
            Protocol::Toss => "toss",
            Protocol::KakaoPay => "kakaopay",
            Protocol::PortOne => "portone",
        };
        vec![
            ("PAYMENT_GATEWAY_KAKAO_PAY_URL", self.url()),
            ("PAYMENT_PROVIDER_KAKAO_PAY", provider),
            ("TOSS_SECRET_KEY", toss::SECRET_KEY),
            ("KAKAOPAY_SECRET_KEY", kakaopay::SECRET_KEY),
            ("KAKAOPAY_CID", kakaopay::CID),
            ("PORTONE_API_SECRET", portone::API_SECRET),
            ("PORTONE_WEBHOOK_SECRET", portone::WEBHOOK_SECRET),
            ("PORTONE_STORE_ID", portone::STORE_ID),
        ]
    }

    /// The customer approves a payment at the provider. Returns what the provider gives the shop's page: `gatewayToken`.
    /// `prepared` is the service's reply to the preparation.
    pub fn approve_in_window(&self, prepared: &Value) -> String {
        let window = Window {
            merchant_order_id: prepared["merchantOrderId"].as_str().unwrap().to_owned(),
            amount: prepared["amount"].as_i64().unwrap(),
        };
        let mut ledger = self.ledger();
        match self.protocol {
            Protocol::Http => panic!("the generic protocol has no window"),
            Protocol::Toss => {
                let key = format!("tgen_{}_{}", ledger.payments.len(), window.merchant_order_id);
                ledger.payments.entry(key.clone()).or_default().window = Some(window);
                key
            }
            Protocol::KakaoPay => {
                let tid = prepared["redirectUrl"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
                let payment = ledger.payments.get_mut(&tid).unwrap();
                assert!(payment.window.is_some(), "{tid} was not prepared");
                payment.is_authenticated = true;
                format!("pg_{tid}")
            }
            Protocol::PortOne => {
                let id = window.merchant_order_id.clone();
                ledger.payments.entry(id.clone()).or_default().window = Some(window);
                id
            }
        }
    }

    /// The customer pays in PortOne's window, before the service asks.
    pub fn customer_pays(&self, id: &str, amount: i64) {
        assert_eq!(self.protocol, Protocol::PortOne);
        let mut ledger = self.ledger();
        let payment = ledger.payments.entry(id.to_owned()).or_default();
        payment.window.get_or_insert_with(|| Window { merchant_order_id: id.to_owned(), amount });
        payment.decision = Some(Decision::Taken { amount });
    }

    /// The headers and the body of a provider's message that the payment under `uid` has changed, at `now` (ms). `None`: it sends none.
    pub fn webhook(&self, uid: &str, now: i64) -> Option<(Vec<(&'static str, String)>, String)> {
        let ledger = self.ledger();
        match self.protocol {
            Protocol::Http | Protocol::KakaoPay => None,
            Protocol::Toss => {
                let payment = toss::describe(uid, &ledger.payments[uid], CancelledAmounts::Named);
                Some((Vec::new(), toss::message(&payment)))
            }
            Protocol::PortOne => Some(portone::message("Transaction.Paid", uid, now / 1000)),
        }
    }
}

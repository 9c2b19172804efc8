//! The customers at a provider's page: they prepare the payment of an order, some twice, approve it there once, and bring a token back.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use super::{clients::send, history::Outcome, requests::Request};
use crate::support::fake_gateway::{FakeGateway, Protocol};

/// The token of an order, once its customer has one.
type Token = Arc<tokio::sync::Mutex<Option<String>>>;

/// The pages of the run's provider.
pub struct Windows {
    gateway: Arc<FakeGateway>,
    tokens: Mutex<HashMap<i64, Token>>,
}

impl Windows {
    /// `None` of the generic protocol, which has no page.
    pub fn of(gateway: Arc<FakeGateway>) -> Option<Windows> {
        (gateway.protocol != Protocol::Http).then(|| Windows { gateway, tokens: Mutex::default() })
    }

    /// What a payment has to bring, if it goes through the provider. All payments of an order bring the same.
    ///
    /// # Errors
    /// What became of the preparation: the payment is not sent then.
    pub async fn token(
        &self,
        http: &reqwest::Client,
        base: &str,
        request: &Request,
    ) -> Result<Option<String>, Outcome> {
        let Request::Pay { order, price, .. } = request else { return Ok(None) };
        if !request.is_by_gateway() || *price == 0 {
            return Ok(None);
        }
        let token = self.tokens.lock().unwrap().entry(*order).or_default().clone();
        let mut token = token.lock().await;
        if token.is_none() {
            let mut prepared = prepare(http, base, request, "first").await?;
            // Some customers open a second page, and half of them approve there.
            if order % 3 == 0
                && let Ok(second) = prepare(http, base, request, "second").await
                && order % 2 == 0
            {
                prepared = second;
            }
            *token = Some(self.gateway.approve_in_window(&prepared));
        }
        Ok(token.clone())
    }
}

/// Prepares the payment that `request` asks for. A repeat under the same name finds the preparation of a lost reply.
///
/// # Errors
/// What became of it.
async fn prepare(http: &reqwest::Client, base: &str, request: &Request, name: &str) -> Result<Value, Outcome> {
    let Request::Pay { order, user, .. } = request else { panic!("{request:?} prepares nothing") };
    let body =
        json!({"orderId": order, "userId": user, "paymentType": "KAKAO_PAY", "returnUrl": "https://shop.example/paid"});
    let prepare = http.post(format!("{base}/api/v1/payments/prepare")).json(&body);
    let outcome = match send(prepare.header("Idempotency-Key", format!("prepare-{order}-{name}"))).await {
        Ok((status, text, replayed)) => Outcome::read(request, status, &text, replayed),
        Err(error) => Outcome::Unknown(format!("the preparation: {error:?}")),
    };
    match outcome {
        Outcome::Done { body, .. } => Ok(body),
        outcome => Err(outcome),
    }
}

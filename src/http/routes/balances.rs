//! 잔액: balances, charges and the history of both.

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    http::{
        error::Code,
        extract::{
            decode::{optional_parsed, parsed},
            fields::Bounded,
            params::{Params, PathUser, QueryParams},
            write::{RequestBody, Write},
        },
        limits::costs,
        openapi::errors::documented_errors,
        reply::{Answer, Done, Found},
        state::AppState,
    },
    model::{Balance, BalanceEntry, MAX_CHARGE, MAX_SAFE_INTEGER, OrderId, TransactionType, UserId, Won},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(balance, charge)).routes(routes!(history))
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(description = "잔액 충전 요청", example = json!({ "amount": 1000 }))]
pub struct ChargeRequest {
    /// 충전 금액(원)
    amount: Bounded<1, { MAX_CHARGE }>,
}

impl RequestBody for ChargeRequest {
    type Valid = Won;

    const INVALID: Code = Code::InvalidAmount;

    fn validate(self, _zone: Tz) -> Option<Won> {
        Some(self.amount.get())
    }

    // The path names the user.
    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "사용자 잔액")]
struct UserBalanceResponse {
    /// 사용자 ID
    user_id: i64,
    /// 사용자 이름
    user_name: String,
    /// 현재 잔액(원)
    amount: i64,
    /// 현재 잔액(원): amount와 같은 값입니다.
    balance: i64,
}

impl From<Balance> for UserBalanceResponse {
    fn from(balance: Balance) -> Self {
        UserBalanceResponse {
            user_id: balance.user_id.get(),
            user_name: balance.user_name,
            amount: balance.balance,
            balance: balance.balance,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "잔액 변동 내역")]
pub struct UserBalanceHistoryResponse {
    /// 사용자 ID
    user_id: i64,
    /// 변동 유형
    transaction_type: TransactionType,
    /// 변동 금액(원)
    amount: i64,
    /// 변동 전 잔액(원)
    #[serde(rename = "before_balance")]
    before_balance: i64,
    /// 변동 후 잔액(원)
    #[serde(rename = "after_balance")]
    after_balance: i64,
    /// 변동 시각
    #[schema(example = "2024-04-03T12:34:56")]
    created_at: String,
    /// 사용자별 내역 번호: 1부터 빈틈없이 증가합니다.
    entry_no: i64,
    /// 결제 또는 환불된 주문 ID
    #[schema(required = true)]
    order_id: Option<i64>,
}

impl UserBalanceHistoryResponse {
    pub fn new(entry: BalanceEntry, zone: Tz) -> Self {
        UserBalanceHistoryResponse {
            user_id: entry.user_id.get(),
            transaction_type: entry.kind,
            amount: entry.amount,
            before_balance: entry.before,
            after_balance: entry.after,
            created_at: entry.at.local(zone),
            entry_no: entry.entry_no,
            order_id: entry.order_id.map(OrderId::get),
        }
    }
}

documented_errors! { BalanceErrors {
    "사용자를 찾을 수 없음" => [UserNotFound],
    "서버 오류" => [Internal],
}}

#[utoipa::path(
    get,
    path = "/api/v1/balances/{userId}",
    tag = "잔액",
    summary = "사용자 잔액 조회",
    description = "사용자 현재 잔액을 조회합니다.",
    params(("userId" = i64, Path, description = "userId")),
    responses(
        (status = 200, description = "잔액 조회 성공", body = UserBalanceResponse, example = json!({
            "userId": 1, "userName": "이다은", "amount": 10000, "balance": 10000
        })),
        BalanceErrors,
    )
)]
async fn balance(State(app): State<AppState>, user: PathUser) -> Found<UserBalanceResponse> {
    Ok(Json(app.engine.balance(user.valid()?).await?.into()))
}

documented_errors! { ChargeErrors {
    "잘못된 충전 요청 금액 (1보다 작거나 최대 한도 초과)" => [InvalidAmount],
    "사용자를 찾을 수 없음" => [UserNotFound],
}}

#[utoipa::path(
    put,
    path = "/api/v1/balances/{userId}",
    tag = "잔액",
    summary = "사용자 잔액 충전",
    description = "사용자 잔액을 충전합니다. 충전 성공 시 갱신된 포인트 정보가 반환됩니다. 단, 충전 금액은 1 이상이어야 하며, 최대 한도(100,000)를 초과할 수 없습니다.",
    params(("userId" = i64, Path, description = "userId")),
    request_body(content = ChargeRequest, example = json!({ "amount": 1000 })),
    responses(
        (status = 200, description = "잔액 충전 성공", body = UserBalanceResponse, example = json!({
            "userId": 1, "userName": "이다은", "balance": 6000, "amount": 6000
        })),
        ChargeErrors,
    )
)]
async fn charge(
    State(app): State<AppState>,
    user: PathUser,
    Write { call, body: amount }: Write<ChargeRequest>,
) -> Done<UserBalanceResponse> {
    let charged = app.engine.charge(&call, user.valid()?, amount).await?;
    Ok(Answer::ok(charged.map(UserBalanceResponse::from)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct HistoryParams {
    /// 조회할 최대 내역 수
    #[serde(default = "history_limit", deserialize_with = "parsed")]
    #[param(inline, default = 100)]
    limit: HistoryLimit,
    /// 이 entryNo보다 앞선 내역만 조회
    #[serde(default, deserialize_with = "optional_parsed")]
    #[param(inline)]
    before: Option<Bounded<1, { MAX_SAFE_INTEGER }>>,
}

/// The entries of a reply, at most.
type HistoryLimit = Bounded<1, 1_000>;

fn history_limit() -> HistoryLimit {
    const { HistoryLimit::constant(100) }
}

impl QueryParams for HistoryParams {
    // The path names the user.
    fn user(&self) -> Option<UserId> {
        None
    }

    fn cost(&self) -> u32 {
        costs::of_entries(self.limit.get())
    }
}

documented_errors! { HistoryErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
    "사용자를 찾을 수 없음" => [UserNotFound],
    "서버 오류" => [Internal],
}}

#[utoipa::path(
    get,
    path = "/api/v1/balances/{userId}/history",
    tag = "잔액",
    summary = "사용자 잔액 내역 조회",
    description = "특정 사용자의 잔액 변동 내역을 조회합니다.",
    params(("userId" = i64, Path, description = "userId"), HistoryParams),
    responses(
        (status = 200, description = "사용자 잔액 내역 조회 성공", body = Vec<UserBalanceHistoryResponse>, example = json!([
            {
                "userId": 1, "transactionType": "CHARGE", "amount": 5000, "before_balance": 10000,
                "after_balance": 15000, "createdAt": "2024-04-03T12:34:56", "entryNo": 2, "orderId": null
            },
            {
                "userId": 1, "transactionType": "PAYMENT", "amount": 2000, "before_balance": 15000,
                "after_balance": 13000, "createdAt": "2024-04-03T12:40:00", "entryNo": 3, "orderId": 123
            }
        ])),
        HistoryErrors,
    )
)]
async fn history(
    State(app): State<AppState>,
    user: PathUser,
    params: Params<HistoryParams>,
) -> Found<Vec<UserBalanceHistoryResponse>> {
    let user = user.valid()?;
    let HistoryParams { limit, before } = params.valid()?;
    let entries = app.engine.history(user, limit.get(), before.map(Bounded::get)).await?;
    let zone = app.engine.zone();
    Ok(Json(entries.into_iter().map(|entry| UserBalanceHistoryResponse::new(entry, zone)).collect()))
}

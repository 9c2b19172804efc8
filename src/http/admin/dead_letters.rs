//! Dead letters: listing them and retrying one.

use std::str::FromStr;

use axum::{Json, extract::State};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{
        error::{ApiError, Code},
        extract::{
            fields::{Bounded, text_field},
            params::Params,
            write::{RequestBody, Write},
        },
        openapi::errors::documented_errors,
        page::{Listed, PageParams, PageResponse},
        reply::{Found, NoContent},
        state::AppState,
    },
    model::{DeadLetter, DeadLetterId, MAX_SAFE_INTEGER, UserId},
    projector::dead_letters::Retried,
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(dead_letters)).routes(routes!(retry))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "반영할 수 없어 따로 보관된 이벤트")]
pub(super) struct DeadLetterResponse {
    /// 파티션 번호
    partition: u16,
    /// 스트림 항목 ID
    #[schema(example = "1712209500000-0")]
    stream_id: String,
    /// 결정 순번: 순번을 읽을 수 없는 항목이면 null
    #[schema(required = true)]
    seq: Option<i64>,
    /// 마지막으로 반영할 수 없었던 이유
    reason: String,
    /// 이벤트의 필드
    #[schema(value_type = Object)]
    fields: serde_json::Value,
    /// 보관된 시각
    #[schema(example = "2024-04-04T14:45:00")]
    recorded_at: String,
}

impl DeadLetterResponse {
    pub(super) fn new(dead_letter: DeadLetter, zone: Tz) -> Self {
        DeadLetterResponse {
            partition: dead_letter.id.partition,
            stream_id: dead_letter.id.stream_id,
            seq: dead_letter.id.seq,
            reason: dead_letter.reason,
            fields: dead_letter.fields,
            recorded_at: dead_letter.recorded_at.local(zone),
        }
    }
}

type DeadLetterPageResponse = PageResponse<DeadLetterResponse>;

impl Listed for DeadLetterResponse {
    const PAGE: &str = "DeadLetterPageResponse";
    const DESCRIPTION: &str = "반영할 수 없어 따로 보관된 이벤트의 한 페이지";
    const CONTENT: &str = "보관된 이벤트 목록";
    const TOTAL: &str = "전체 보관된 이벤트 수";
}

documented_errors! { DeadLettersErrors {
    "잘못된 요청 (유효하지 않은 조회 조건)" => [InvalidRequest],
}}

#[utoipa::path(
    get,
    path = "/admin/v1/dead-letters",
    operation_id = "deadLetters",
    tag = "운영",
    summary = "반영할 수 없는 이벤트 조회",
    description = "데이터베이스에 반영할 수 없어 따로 보관된 이벤트를 최신순으로 조회합니다.",
    params(PageParams),
    responses((status = 200, description = "조회 성공", body = DeadLetterPageResponse), DeadLettersErrors)
)]
async fn dead_letters(State(app): State<AppState>, page: Params<PageParams>) -> Found<DeadLetterPageResponse> {
    let PageParams { page, size } = page.valid()?;
    let dead_letters = app.engine.dead_letters(page.get(), size.get()).await?;
    let zone = app.engine.zone();
    Ok(Json(PageResponse::new(dead_letters, |dead_letter| DeadLetterResponse::new(dead_letter, zone))))
}

/// The id of an entry of a stream: milliseconds and a number.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct StreamEntryId(String);

impl FromStr for StreamEntryId {
    type Err = ();

    fn from_str(id: &str) -> Result<Self, ()> {
        let number = |digits: &str| (1..=20).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let (ms, no) = id.split_once('-').ok_or(())?;
        if number(ms) && number(no) { Ok(StreamEntryId(id.to_owned())) } else { Err(()) }
    }
}

text_field! { StreamEntryId, "^[0-9]{1,20}-[0-9]{1,20}$" }

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "보관된 이벤트 재시도 요청",
    example = json!({ "partition": 0, "streamId": "1712209500000-0", "seq": 42 }),
)]
struct RetryRequest {
    /// 파티션 번호
    partition: Bounded<0, 255>,
    /// 스트림 항목 ID
    stream_id: StreamEntryId,
    /// 결정 순번: 조회된 값이 null이면 null
    seq: Option<Bounded<0, { MAX_SAFE_INTEGER }>>,
}

impl RequestBody for RetryRequest {
    type Valid = DeadLetterId;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, _zone: Tz) -> Option<DeadLetterId> {
        let RetryRequest { partition, stream_id: StreamEntryId(stream_id), seq } = self;
        let partition = u16::try_from(partition.get()).ok()?;
        Some(DeadLetterId { partition, stream_id, seq: seq.map(Bounded::get) })
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

documented_errors! { RetryErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
    "보관된 이벤트를 찾을 수 없음 (이미 반영되었을 수 있음)" => [DeadLetterNotFound],
    "이벤트를 반영할 수 없음" => [DeadLetterRefused],
}}

/// Needs no idempotency key: a dead letter is applied once and deleted.
#[utoipa::path(
    post,
    path = "/admin/v1/dead-letters/retry",
    operation_id = "retryDeadLetter",
    tag = "운영",
    summary = "반영할 수 없는 이벤트 재시도",
    description = "보관된 이벤트를 데이터베이스에 다시 반영합니다. 반영되면 보관에서 삭제되고, 반영할 수 없으면 409와 함께 이유가 갱신됩니다. \
        여러 번 요청해도 한 번만 반영됩니다.",
    request_body(content = RetryRequest),
    responses((status = 204, description = "반영 성공"), RetryErrors)
)]
async fn retry(
    State(admin): State<AdminState>,
    Write { body: dead_letter, .. }: Write<RetryRequest>,
) -> Result<NoContent, ApiError> {
    match admin.projector.retry(&dead_letter).await? {
        Retried::Applied => Ok(NoContent),
        Retried::Refused(reason) => Err(ApiError::because(Code::DeadLetterRefused, &reason)),
        Retried::NotFound => Err(Code::DeadLetterNotFound.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn dead_letter_id_round_trips() {
        let dead_letter = |body: Value| {
            let request: RetryRequest = serde_json::from_value(body).ok()?;
            request.validate(chrono_tz::UTC)
        };
        let named = dead_letter(json!({ "partition": 2, "streamId": "17-0", "seq": 4 })).unwrap();
        assert_eq!(named, DeadLetterId { partition: 2, stream_id: "17-0".to_owned(), seq: Some(4) });
        assert!(dead_letter(json!({ "partition": 0, "streamId": "17-0", "seq": null })).unwrap().seq.is_none());
        assert!(dead_letter(json!({ "partition": 0, "streamId": "17-0" })).unwrap().seq.is_none());
        for hostile in [
            json!({ "partition": 256, "streamId": "17-0", "seq": 4 }),
            json!({ "partition": -1, "streamId": "17-0", "seq": 4 }),
            json!({ "partition": 0, "streamId": "17", "seq": 4 }),
            json!({ "partition": 0, "streamId": "17-", "seq": 4 }),
            json!({ "partition": 0, "streamId": "17-0-0", "seq": 4 }),
            json!({ "partition": 0, "streamId": "1७-0", "seq": 4 }),
            json!({ "partition": 0, "streamId": "000000000000000000001-0", "seq": 4 }),
            json!({ "partition": 0, "streamId": "17-0", "seq": -1 }),
            json!({ "partition": 0, "streamId": "17-0", "seq": "4" }),
        ] {
            assert!(dead_letter(hostile.clone()).is_none(), "{hostile}");
        }
    }
}

//! The document at `/v3/api-docs` matches the contract, and the service matches the document:
//! [`api_kit`](crate::support::api_kit) checks every reply of the API tests.
//!
//! [`Document`] is a small JSON Schema checker. It is stricter than the standard: a field that the schema does not name
//! is a fault, and so is a keyword that the checker does not know.

mod document;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::support::{
    api_kit::{document, fields},
    harness::{Reply, TestApp},
};

/// An OpenAPI 3.1 document.
pub struct Document(pub Value);

/// Keywords without effect on validity.
const ANNOTATIONS: &[&str] = &["description", "example", "examples", "default", "title", "format"];

impl Document {
    pub fn new(document: Value) -> Self {
        Document(document)
    }

    /// The operation of a method and path, with its path template.
    fn operation(&self, method: &str, path: &str) -> Option<(&str, &Value)> {
        let path = path.split('?').next().unwrap();
        let asked: Vec<&str> = path.split('/').collect();
        let fits = |template: &str| {
            let parts: Vec<&str> = template.split('/').collect();
            let same = |(part, asked): (&&str, &&str)| part == asked || (part.starts_with('{') && !asked.is_empty());
            parts.len() == asked.len() && parts.iter().zip(&asked).all(same)
        };
        // A literal path takes precedence over a template.
        let paths = self.0["paths"].as_object().unwrap();
        let (template, item) =
            paths.iter().filter(|(path, _)| fits(path)).min_by_key(|(path, _)| path.contains('{'))?;
        Some((template, item.get(method.to_ascii_lowercase())?))
    }

    /// Every operation that writes, as `POST /path/{template}`.
    pub fn writes(&self) -> BTreeSet<String> {
        let mut writes = BTreeSet::new();
        for (template, item) in self.0["paths"].as_object().unwrap() {
            let methods = item.as_object().unwrap().keys().filter(|method| *method != "get");
            writes.extend(methods.map(|method| format!("{} {template}", method.to_ascii_uppercase())));
        }
        writes
    }

    /// The operation of a request, named as [`Document::writes`] does.
    pub fn name(&self, method: &str, path: &str) -> Option<String> {
        self.operation(method, path).map(|(template, _)| format!("{method} {template}"))
    }

    /// Asserts that the operation documents the reply.
    #[track_caller]
    pub fn check_reply(&self, method: &str, path: &str, reply: &Reply) {
        let status = reply.status.as_str();
        let Some((template, operation)) = self.operation(method, path) else {
            assert!(!reply.status.is_success() || !path.starts_with("/api/"), "{method} {path} is not documented");
            return;
        };
        let what = format!("{method} {template} {status}");
        let documented = operation["responses"].get(status);
        let documented = documented.unwrap_or_else(|| panic!("{what} is not documented: {}", reply.text));
        let kind = reply.headers.get("content-type").map_or("", |kind| kind.to_str().unwrap());
        // A stream of events has no schema.
        if kind == "text/event-stream" && !documented["content"][kind].is_null() {
            return;
        }
        let content = &documented["content"]["application/json"];
        if content.is_null() {
            assert_eq!(reply.text, "", "{what} has no content");
        } else if let Err(fault) = self.check(&content["schema"], &reply.json(), true) {
            panic!("{what}{fault}: {}", reply.text);
        }
        if !reply.status.is_success() && path != "/readyz" {
            // The parameter's description lists the errors of idempotency keys.
            let code = reply.json()["errorCode"].take();
            let of_a_key = ["INVALID_IDEMPOTENCY_KEY", "REQUEST_IN_PROGRESS"].iter().any(|known| code == *known);
            let shown = examples(content).any(|example| example["errorCode"] == code);
            assert!(shown || of_a_key, "{what} does not show {code}");
        }
        for header in documented["headers"].as_object().unwrap().keys() {
            let needed = header != "Idempotent-Replayed" && header != "x-unknown-fields";
            assert!(!needed || reply.headers.contains_key(header.as_str()), "{what} without {header}");
        }
    }

    /// Asserts that the document allows a body that the service accepted. Unknown fields are allowed.
    #[track_caller]
    pub fn check_request(&self, method: &str, path: &str, body: &Value) {
        let (template, operation) = self.operation(method, path).unwrap();
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        if let Err(fault) = self.check(schema, body, false) {
            panic!("{method} {template}{fault}: {body} was accepted");
        }
    }

    /// Whether the document forbids the body.
    pub fn rejects(&self, method: &str, path: &str, body: &Value) -> bool {
        let (_, operation) = self.operation(method, path).unwrap();
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        self.check(schema, body, false).is_err()
    }

    /// Checks `value` against `schema`; the error is the first fault, with its path. `strict`: a field that the schema
    /// does not name is a fault.
    pub fn check(&self, schema: &Value, value: &Value, strict: bool) -> Result<(), String> {
        let schema = schema.as_object().ok_or(" has no schema")?;
        for (keyword, rule) in schema {
            self.keyword(schema, keyword, rule, value, strict)?;
        }
        Ok(())
    }

    fn keyword(
        &self,
        schema: &Map<String, Value>,
        keyword: &str,
        rule: &Value,
        value: &Value,
        strict: bool,
    ) -> Result<(), String> {
        let must = |holds: bool| if holds { Ok(()) } else { Err(format!(" breaks {keyword} {rule} with {value}")) };
        let listed = || rule.as_array().unwrap().iter();
        let number = |value: &Value| value.as_f64();
        let length = value.as_str().map(|text| text.chars().count() as u64);
        match keyword {
            "$ref" => {
                let name = rule.as_str().unwrap().strip_prefix("#/components/schemas/").unwrap();
                let schema = self.0["components"]["schemas"].get(name).ok_or(format!(" has no schema {name}"))?;
                self.check(schema, value, strict)
            }
            "type" => {
                let types = if rule.is_array() { listed().collect() } else { vec![rule] };
                must(types.iter().any(|kind| is_a(kind.as_str().unwrap(), value)))
            }
            "additionalProperties" => {
                assert_eq!(rule, &json!(false), "{schema:?}");
                let known = |name: &str| schema.get("properties").is_some_and(|fields| fields.get(name).is_some());
                must(value.as_object().is_none_or(|object| object.keys().all(|name| known(name))))
            }
            "minProperties" => {
                must(value.as_object().is_none_or(|object| object.len() as u64 >= rule.as_u64().unwrap()))
            }
            "enum" => must(listed().any(|word| word == value)),
            "oneOf" => must(listed().filter(|schema| self.check(schema, value, strict).is_ok()).count() == 1),
            "anyOf" => must(listed().any(|schema| self.check(schema, value, strict).is_ok())),
            "required" => match value.as_object() {
                None => Ok(()),
                Some(object) => must(listed().all(|name| object.contains_key(name.as_str().unwrap()))),
            },
            "properties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    match rule.get(name) {
                        Some(schema) => {
                            self.check(schema, value, strict).map_err(|fault| format!(".{name}{fault}"))?;
                        }
                        None if strict => return Err(format!(" has an undocumented field {name}")),
                        None => {}
                    }
                }
                Ok(())
            }
            "items" => value
                .as_array()
                .into_iter()
                .flatten()
                .try_for_each(|item| self.check(rule, item, strict).map_err(|fault| format!("[]{fault}"))),
            "minimum" => must(number(value).is_none_or(|number| number >= rule.as_f64().unwrap())),
            "maximum" => must(number(value).is_none_or(|number| number <= rule.as_f64().unwrap())),
            "minLength" => must(length.is_none_or(|length| length >= rule.as_u64().unwrap())),
            "maxLength" => must(length.is_none_or(|length| length <= rule.as_u64().unwrap())),
            "minItems" => must(value.as_array().is_none_or(|items| items.len() as u64 >= rule.as_u64().unwrap())),
            "maxItems" => must(value.as_array().is_none_or(|items| items.len() as u64 <= rule.as_u64().unwrap())),
            "pattern" => must(value.as_str().is_none_or(|text| fits(rule.as_str().unwrap(), text))),
            annotation if ANNOTATIONS.contains(&annotation) => Ok(()),
            unknown => Err(format!(" has a keyword that the checker does not know: {unknown} in {schema:?}")),
        }
    }
}

/// Whether a text matches a pattern of the document. Panics on an unknown pattern.
fn fits(pattern: &str, text: &str) -> bool {
    let plain = !text.contains(char::is_control);
    match pattern {
        "^[A-Z][A-Z0-9_]{0,31}$" => text.parse::<firstcome::model::Category>().is_ok(),
        "^[A-Z0-9_-]{1,32}$" => text.parse::<firstcome::model::LimitGroup>().is_ok(),
        r"^[^\u0000-\u001F\u007F-\u009F]*$" => plain,
        r"^[^\u0000-\u001F\u007F-\u009F]*[^\s\u0000-\u001F\u007F-\u009F][^\u0000-\u001F\u007F-\u009F]*$" => {
            plain && !text.trim().is_empty()
        }
        r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?$" => {
            let shape = |c: char| if c.is_ascii_digit() { '0' } else { c };
            let (time, fraction) = text.split_once('.').unwrap_or((text, "0"));
            time.chars().map(shape).collect::<String>() == "0000-00-00T00:00:00"
                && (1..=9).contains(&fraction.len())
                && fraction.bytes().all(|byte| byte.is_ascii_digit())
        }
        r"^([a-z0-9._-]{1,32}|oidc:[^\u0000-\u001F\u007F-\u009F]{1,255})$" => {
            firstcome::http::auth::operator::is_operator_name(text)
        }
        "^[0-9]{1,20}-[0-9]{1,20}$" => text.split_once('-').is_some_and(|(ms, no)| {
            [ms, no].iter().all(|part| (1..=20).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit()))
        }),
        r"^(\*|[a-z]+\.[a-z]+)$" => {
            let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
            text == "*" || text.split_once('.').is_some_and(|(of, what)| is_word(of) && is_word(what))
        }
        "^[0-9]{1,16}-[0-9]{1,16}-[0-9]{1,16}$" => {
            let is_number =
                |part: &str| (1..=16).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
            text.split('-').count() == 3 && text.split('-').all(is_number)
        }
        unknown => panic!("a pattern that the checker does not know: {unknown}"),
    }
}

/// The examples of a request or reply body.
fn examples(content: &Value) -> impl Iterator<Item = &Value> {
    let named = content["examples"].as_object().into_iter().flat_map(|examples| examples.values());
    content.get("example").into_iter().chain(named.map(|example| &example["value"]))
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        // JSON Schema counts 1000.0 as an integer.
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        other => panic!("{other} is not a type"),
    }
}

#[test]
fn schema_checker_finds_faults() {
    let document = Document::new(json!({"components": {"schemas": {
        "Word": {"type": "string", "enum": ["A", "B"]},
        "Thing": {"type": "object", "required": ["id", "words", "word"], "properties": {
            "id": {"type": "integer", "minimum": 1, "maximum": 10},
            "name": {"type": ["string", "null"], "minLength": 1},
            "words": {"type": "array", "items": {"$ref": "#/components/schemas/Word"}, "maxItems": 2},
            "word": {"oneOf": [{"type": "null"}, {"$ref": "#/components/schemas/Word"}]}
        }}
    }}}));
    let thing = json!({"$ref": "#/components/schemas/Thing"});
    let check = |value: Value, strict: bool| document.check(&thing, &value, strict).is_ok();
    assert!(check(json!({"id": 1, "name": null, "words": ["A"], "word": null}), true));
    assert!(check(json!({"id": 10.0, "words": [], "word": "B", "more": 1}), false));
    for wrong in [
        json!([]),
        json!({"id": 1, "words": []}),
        json!({"id": 1, "words": [], "word": null, "more": 1}),
        json!({"id": 0, "words": [], "word": null}),
        json!({"id": 11, "words": [], "word": null}),
        json!({"id": 1.5, "words": [], "word": null}),
        json!({"id": "1", "words": [], "word": null}),
        json!({"id": null, "words": [], "word": null}),
        json!({"id": 1, "words": ["C"], "word": null}),
        json!({"id": 1, "words": ["A", "A", "A"], "word": null}),
        json!({"id": 1, "words": [], "word": "C"}),
        json!({"id": 1, "words": [], "word": null, "name": ""}),
        json!({"id": 1, "words": [], "word": null, "name": true}),
    ] {
        assert!(!check(wrong.clone(), true), "{wrong}");
    }
}

/// An operation of the contract: method, path, tag, summary, description, statuses with their descriptions.
type PageRow =
    (&'static str, &'static str, &'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);

const PAGE: &[PageRow] = &[
    (
        "post",
        "/api/v1/payments",
        "결제",
        "결제 처리",
        "주문에 대한 결제를 진행합니다. 사용자가 선택한 결제 방법을 이용하여 주문을 결제하며, 결제 성공 시 주문 상태를 PAID 상태로 변경합니다. \
         프로세스 1. orderId를 기반으로 주문 정보 조회 2. 사용자의 결제 수단 및 잔액 확인 3. 결제 진행 (카드, 카카오페이 등 외부 결제 시스템 연동 가능) \
         4. 결제 성공 시 주문 상태 PAID 상태로 업데이트 (PENDING → PAID) 5. 결제 실패 시 주문 상태 FAILED 상태로 변경 (PENDING → FAILED)",
        &[
            ("200", "결제 성공"),
            ("400", "잘못된 요청 (입력값 오류, 유효성 검사 실패)"),
            ("402", "잔액 부족"),
            ("404", "주문을 찾을 수 없음"),
            ("409", "이미 결제된 주문"),
            ("500", "서버 오류"),
        ],
    ),
    (
        "get",
        "/api/v1/balances/{userId}",
        "잔액",
        "사용자 잔액 조회",
        "사용자 현재 잔액을 조회합니다.",
        &[("200", "잔액 조회 성공"), ("404", "사용자를 찾을 수 없음"), ("500", "서버 오류")],
    ),
    (
        "put",
        "/api/v1/balances/{userId}",
        "잔액",
        "사용자 잔액 충전",
        "사용자 잔액을 충전합니다. 충전 성공 시 갱신된 포인트 정보가 반환됩니다. 단, 충전 금액은 1 이상이어야 하며, 최대 한도(100,000)를 초과할 수 없습니다.",
        &[
            ("200", "잔액 충전 성공"),
            ("400", "잘못된 충전 요청 금액 (1보다 작거나 최대 한도 초과)"),
            ("404", "사용자를 찾을 수 없음"),
        ],
    ),
    (
        "get",
        "/api/v1/balances/{userId}/history",
        "잔액",
        "사용자 잔액 내역 조회",
        "특정 사용자의 잔액 변동 내역을 조회합니다.",
        &[("200", "사용자 잔액 내역 조회 성공"), ("404", "사용자를 찾을 수 없음"), ("500", "서버 오류")],
    ),
    (
        "post",
        "/api/v1/coupons/issue",
        "쿠폰",
        "(선착순) 쿠폰 발급",
        "(선착순) 쿠폰을 발급합니다.",
        &[
            ("200", "쿠폰 발급 성공"),
            ("400", "유효하지 않은 쿠폰"),
            ("404", "사용자를 찾을 수 없음"),
            ("409", "발급 가능한 쿠폰 수량 부족"),
        ],
    ),
    (
        "get",
        "/api/v1/coupons/{userId}",
        "쿠폰",
        "사용자 쿠폰 리스트 조회",
        "사용자의 쿠폰 목록을 조회합니다. discountType가 FIXED인 경우 usedAt는 null",
        &[("200", "쿠폰 조회 성공"), ("404", "사용자를 찾을 수 없음")],
    ),
    (
        "get",
        "/api/v1/products/{productId}",
        "상품",
        "상품 조회",
        "특정 상품 정보를 조회합니다.",
        &[("200", "상품 조회 성공"), ("404", "상품을 찾을 수 없음")],
    ),
    (
        "get",
        "/api/v1/products/popular",
        "상품",
        "인기 상품 조회",
        "특정 기간 동안 가장 많이 판매된 인기 상품 목록을 조회합니다.",
        &[("200", "인기 상품 조회 성공"), ("400", "잘못된 요청 (유효하지 않은 랭킹 범위)"), ("500", "서버 내부 오류")],
    ),
    (
        "post",
        "/api/v1/orders",
        "주문",
        "주문 생성 및 결제 요청",
        "상품 주문과 결제를 처리합니다. 주문 생성 후 결제를 시도하며, 결제 시도 시 주문은 PENDING 상태로 생성됩니다. \
         프로세스 1. 상품 재고 확인 2. 쿠폰 적용 및 할인 계산 3. 주문 정보 저장 (주문 PENDING 상태)",
        &[
            ("200", "주문 생성 성공"),
            ("400", "잘못된 주문 요청 (입력값 오류, 유효성 검사 실패)"),
            ("402", "잔액 부족"),
            ("404", "사용자를 찾을 수 없음"),
            ("409", "재고 부족"),
            ("500", "서버 오류"),
        ],
    ),
];

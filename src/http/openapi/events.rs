//! The AsyncAPI document of the events: the feed, and the requests of webhooks.

use serde_json::{Map, Value, json};
use utoipa::PartialSchema;

use super::document::enumerations;
use crate::model::public_event::{CloudEvent, EventType, schemas};

/// The document.
pub fn document() -> Value {
    let mut components = Map::new();
    for (name, schema) in schemas() {
        components.insert(name, serde_json::to_value(schema).unwrap_or_default());
    }
    for (name, schema) in enumerations() {
        if let Some(component) = components.get_mut(&name) {
            *component = serde_json::to_value(schema).unwrap_or_default();
        }
    }
    let envelope = serde_json::to_value(CloudEvent::schema()).unwrap_or_default();
    components.insert("CloudEvent".to_owned(), envelope);
    let (mut messages, mut in_channel) = (Map::new(), Map::new());
    for kind in EventType::ALL {
        let name = kind.as_str();
        in_channel.insert(name.to_owned(), json!({ "$ref": format!("#/components/messages/{name}") }));
        messages.insert(
            name.to_owned(),
            json!({
                "name": name,
                "title": name,
                "summary": kind.description(),
                "contentType": "application/cloudevents+json",
                "payload": {
                    "allOf": [
                        { "$ref": "#/components/schemas/CloudEvent" },
                        {
                            "type": "object",
                            "properties": {
                                "type": { "const": name },
                                "data": { "$ref": format!("#/components/schemas/{}", kind.schema()) },
                            },
                        },
                    ],
                },
            }),
        );
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "firstcome events",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Every decision as a CloudEvent: in GET /admin/v1/events, and in requests to webhooks, which are signed by \
                Standard Webhooks. Types and fields may be added; a reader ignores those that it does not know.",
        },
        "defaultContentType": "application/cloudevents+json",
        "channels": {
            "events": {
                "address": "/admin/v1/events",
                "description": "In the order of each partition. A webhook gets the events of one subject in this order, at least once.",
                "messages": in_channel,
            },
        },
        "operations": {
            "sendEvent": {
                "action": "send",
                "channel": { "$ref": "#/channels/events" },
                "summary": "An event is recorded, and sent to the webhooks that want its type.",
            },
        },
        "components": { "schemas": components, "messages": messages },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` of a document.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value.as_str().filter(|_| name == "$ref") {
                        Some(reference) => found.push(reference),
                        None => references(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn references_of_events_document_lead_somewhere() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > EventType::ALL.len() * 3);
        for reference in found {
            assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
        }
    }

    #[test]
    fn events_document_describes_every_type() {
        let document = document();
        for kind in EventType::ALL {
            let message = &document["components"]["messages"][kind.as_str()];
            assert!(message["summary"].as_str().unwrap().ends_with('.'), "{message}");
        }
    }
}

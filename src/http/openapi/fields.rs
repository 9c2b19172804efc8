//! The types of fields in their places. utoipa refers to every type by its name, and a client generator makes a class of each
//! name; so a bounded number would be a class of its own. Only objects and enumerations keep their names.

use std::collections::BTreeMap;

use serde_json::json;
use utoipa::openapi::{
    Components, Object, RefOr, Schema,
    path::Operation,
    schema::{ArrayItems, SchemaType, Type},
};

use super::document::SCHEMAS;

type Types = BTreeMap<String, RefOr<Schema>>;

/// Puts the types of fields in their places, and gives each field its part of its object's example. An object keeps the parts
/// that no field has.
pub fn inline(components: &mut Components) {
    let types: Types = components.schemas.extract_if(.., |_, schema| is_of_field(schema)).collect();
    for schema in components.schemas.values_mut() {
        let RefOr::T(Schema::Object(object)) = schema else { continue };
        let mut example = object.example.take();
        for (name, property) in &mut object.properties {
            let part = example.as_mut().and_then(|example| example.as_object_mut()?.remove(name));
            if let RefOr::T(Schema::Array(list)) = property
                && let ArrayItems::RefOrSchema(item) = &mut list.items
                && let Some(mut field) = in_place(item, &types)
            {
                field.description = None;
                **item = field.into();
                list.example = part;
                continue;
            }
            let Some(mut field) = in_place(property, &types) else { continue };
            field.example = part;
            *property = field.into();
        }
        object.example = example.filter(|rest| *rest != json!({}));
    }
}

fn is_of_field(schema: &RefOr<Schema>) -> bool {
    let RefOr::T(Schema::Object(object)) = schema else { return false };
    object.schema_type != SchemaType::Type(Type::Object) && object.enum_values.is_none()
}

/// The type to which a property refers, with what the property says about itself. `None`: it keeps its reference.
fn in_place(property: &RefOr<Schema>, types: &Types) -> Option<Object> {
    match property {
        RefOr::Ref(reference) => {
            let RefOr::T(Schema::Object(of_field)) = types.get(reference.ref_location.strip_prefix(SCHEMAS)?)? else {
                return None;
            };
            let mut field = of_field.clone();
            field.description = Some(reference.description.clone());
            field.default = reference.default.clone();
            Some(field)
        }
        // An option: the type, or null.
        RefOr::T(Schema::OneOf(one_of)) => {
            let mut field = in_place(one_of.items.first()?, types)?;
            let SchemaType::Type(of_field) = field.schema_type else { return None };
            field.schema_type = SchemaType::Array(vec![of_field, Type::Null]);
            Some(field)
        }
        RefOr::T(_) => None,
    }
}

/// Merges the type of each parameter with its default. (utoipa keeps the two apart.)
pub fn merge_defaults(operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        let RefOr::T(parameter) = parameter else { continue };
        let Some(RefOr::T(Schema::AllOf(all_of))) = &parameter.schema else { continue };
        if let [RefOr::T(Schema::Object(of_field)), RefOr::T(Schema::Object(rest))] = all_of.items.as_slice() {
            let mut field = of_field.clone();
            field.default = rest.default.clone();
            parameter.schema = Some(field.into());
        }
    }
}

//! Pages of listings: the parameters that ask for one, and the envelope that answers.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{ArrayBuilder, KnownFormat, ObjectBuilder, Ref, RefOr, Schema, SchemaFormat, schema::Type},
};

use super::{
    extract::{decode::parsed, fields::Bounded, params::QueryParams},
    limits::costs,
};
use crate::model::{Page, UserId};

/// The last page of a listing, whatever its size: the document can't name a bound of two parameters together.
const LAST_PAGE: i64 = 10_000;

/// The page that a request asks for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageParams {
    /// 페이지 번호 (0부터)
    #[serde(default, deserialize_with = "parsed")]
    #[param(inline, default = 0)]
    pub page: Bounded<0, { LAST_PAGE }>,
    /// 페이지 크기
    #[serde(default = "default_size", deserialize_with = "parsed")]
    #[param(inline, default = 20)]
    pub size: PageSize,
}

/// The items of a page, at most.
type PageSize = Bounded<1, 100>;

fn default_size() -> PageSize {
    const { PageSize::constant(20) }
}

impl QueryParams for PageParams {
    fn user(&self) -> Option<UserId> {
        None
    }

    fn cost(&self) -> u32 {
        costs::of_page(self.size.get())
    }
}

/// How the document describes a page of these. An operation names its page by an alias, `type OrderPageResponse =
/// PageResponse<…>`: utoipa composes the names of generic types itself.
pub trait Listed: ToSchema {
    /// The name of the schema.
    const PAGE: &str;
    const DESCRIPTION: &str;
    /// Describes the field `content`.
    const CONTENT: &str;
    /// Describes the field `totalElements`.
    const TOTAL: &str;
}

/// A page of a listing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PageResponse<T> {
    content: Vec<T>,
    page: i64,
    size: i64,
    total_elements: i64,
}

impl<T> PageResponse<T> {
    pub fn new<M>(page: Page<M>, response: impl FnMut(M) -> T) -> Self {
        let Page { items, page, size, total } = page;
        PageResponse { content: items.into_iter().map(response).collect(), page, size, total_elements: total }
    }
}

impl<T: Listed> ToSchema for PageResponse<T> {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed(T::PAGE)
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(schemas);
    }
}

impl<T: Listed> PartialSchema for PageResponse<T> {
    fn schema() -> RefOr<Schema> {
        let items = Ref::from_schema_name(T::name());
        let number = |description: &str| {
            ObjectBuilder::new()
                .schema_type(Type::Integer)
                .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
                .description(Some(description))
        };
        ObjectBuilder::new()
            .property("content", ArrayBuilder::new().items(items).description(Some(T::CONTENT)))
            .required("content")
            .property("page", number("페이지 번호 (0부터)"))
            .required("page")
            .property("size", number("페이지 크기"))
            .required("size")
            .property("totalElements", number(T::TOTAL))
            .required("totalElements")
            .description(Some(T::DESCRIPTION))
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, ToSchema)]
    struct Item {
        id: i64,
    }

    impl Listed for Item {
        const PAGE: &str = "ItemPage";
        const DESCRIPTION: &str = "a page";
        const CONTENT: &str = "the items";
        const TOTAL: &str = "all items";
    }

    /// a page
    #[derive(Serialize, ToSchema)]
    #[serde(rename_all = "camelCase")]
    #[allow(dead_code)]
    struct ItemPage {
        /// the items
        content: Vec<Item>,
        /// 페이지 번호 (0부터)
        page: i64,
        /// 페이지 크기
        size: i64,
        /// all items
        total_elements: i64,
    }

    #[test]
    fn page_schema_same_as_derived() {
        let of = |schema: RefOr<Schema>| serde_json::to_value(schema).unwrap();
        assert_eq!(of(PageResponse::<Item>::schema()), of(ItemPage::schema()));
        assert_eq!(PageResponse::<Item>::name(), ItemPage::name());
    }
}

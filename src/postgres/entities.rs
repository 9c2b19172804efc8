//! The tables that listings read, as SeaORM entities. `migrations/` documents the columns.

macro_rules! entity {
    ($(#[$doc:meta])* $module:ident = $table:literal { $($(#[$attr:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        pub mod $module {
            use sea_orm::entity::prelude::*;

            #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
            #[sea_orm(table_name = $table)]
            pub struct Model { $($(#[$attr])* pub $field: $type,)* }

            #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
            pub enum Relation {}

            impl ActiveModelBehavior for ActiveModel {}
        }
    };
}

entity! {
    /// The identity of the deployment, in one row.
    stores = "store" {
        #[sea_orm(primary_key, auto_increment = false)]
        singleton: bool,
        store: String,
        partitions: i32,
        ack: String,
    }
}

entity! {
    /// The projected position of each partition.
    positions = "projection_positions" {
        #[sea_orm(primary_key, auto_increment = false)]
        partition: i32,
        epoch: i64,
        seq: i64,
        stream_id: String,
    }
}

entity! {
    /// Events that could not be applied.
    dead_letters = "dead_letters" {
        #[sea_orm(primary_key, auto_increment = false)]
        partition: i32,
        #[sea_orm(primary_key, auto_increment = false)]
        stream_id: String,
        epoch: Option<i64>,
        seq: Option<i64>,
        reason: String,
        fields: Json,
        recorded_at: DateTimeUtc,
    }
}

entity! {
    /// Orders.
    orders = "orders" {
        #[sea_orm(primary_key, auto_increment = false)]
        id: i64,
        user_id: i64,
        status: String,
        total: i64,
        discount: i64,
        final_price: i64,
        coupon_id: Option<i64>,
        placed_at: DateTimeUtc,
        expires_at: DateTimeUtc,
        paid_at: Option<DateTimeUtc>,
        closed_at: Option<DateTimeUtc>,
        close_reason: Option<String>,
        refunded: i64,
    }
}

entity! {
    /// The lines of orders.
    order_lines = "order_lines" {
        #[sea_orm(primary_key, auto_increment = false)]
        order_id: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        product_id: i64,
        quantity: i64,
        price: i64,
        place: i32,
        limit_group: Option<String>,
        refunded: i64,
    }
}

entity! {
    /// The payments of orders.
    payments = "payments" {
        #[sea_orm(primary_key, auto_increment = false)]
        id: i64,
        order_id: i64,
        payment_type: String,
        status: String,
        receipt: String,
        paid_at: Option<DateTimeUtc>,
    }
}

entity! {
    /// The changes of balances, numbered per user.
    balance_entries = "balance_entries" {
        #[sea_orm(primary_key, auto_increment = false)]
        user_id: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        entry_no: i64,
        transaction_type: String,
        amount: i64,
        before_balance: i64,
        after_balance: i64,
        order_id: Option<i64>,
        created_at: DateTimeUtc,
    }
}

entity! {
    /// Products, with only the columns of the listing of withheld units.
    products = "products" {
        #[sea_orm(primary_key, auto_increment = false)]
        id: i64,
        withheld: i64,
    }
}

entity! {
    /// Campaigns, with only the columns of the listing of withheld units.
    campaigns = "campaigns" {
        #[sea_orm(primary_key, auto_increment = false)]
        id: i64,
        withheld: i64,
    }
}

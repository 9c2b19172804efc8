//! The tables that are read, as SeaORM entities. What each column means is written in `migrations/`.

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
    /// Who this store is.
    stores = "store" {
        #[sea_orm(primary_key, auto_increment = false)]
        singleton: bool,
        store: String,
        partitions: i32,
        ack: String,
    }
}

entity! {
    /// How far each partition is projected.
    positions = "projection_positions" {
        #[sea_orm(primary_key, auto_increment = false)]
        partition: i32,
        epoch: i64,
        seq: i64,
        stream_id: String,
    }
}

entity! {
    /// Entries of the outbox that could not be applied.
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
    }
}

entity! {
    /// Their lines.
    order_lines = "order_lines" {
        #[sea_orm(primary_key, auto_increment = false)]
        order_id: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        product_id: i64,
        quantity: i64,
        price: i64,
        place: i32,
    }
}

entity! {
    /// Their payments.
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
    /// Changes of balances.
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
    /// What a rebuild keeps of products.
    products = "products" {
        #[sea_orm(primary_key, auto_increment = false)]
        id: i64,
        withheld: i64,
    }
}

entity! {
    /// The same of campaigns.
    campaigns = "campaigns" {
        #[sea_orm(primary_key, auto_increment = false)]
        id: i64,
        withheld: i64,
    }
}

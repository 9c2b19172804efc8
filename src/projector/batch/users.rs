//! Users that are brought in from elsewhere, and those that are forgotten.

use super::{Batch, UserInsert};
use crate::model::{BalanceEntry, Millis, UserId, event::PutUser};

impl Batch {
    pub(super) fn put_user(&mut self, put: &PutUser, at: Millis) {
        let (id, name) = (put.user.get(), put.name.clone());
        if put.is_new {
            self.new_users.push(UserInsert { id, name, at });
        } else {
            self.names.insert(id, (name, at));
        }
    }

    /// The name of a user that is new in this batch never reaches PostgreSQL.
    pub(super) fn forgotten_user(&mut self, user: UserId, entry: Option<&BalanceEntry>, at: Millis) {
        self.names.remove(&user.get());
        self.new_users.iter_mut().filter(|new| new.id == user.get()).for_each(|new| new.name.clear());
        self.forgotten.insert(user.get(), at);
        if let Some(entry) = entry {
            self.entry(entry);
        }
    }
}

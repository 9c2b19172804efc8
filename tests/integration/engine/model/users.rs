//! Users that are brought in, and those that are forgotten, in the model.

use super::*;

impl Model {
    pub fn exists(&self, user: usize) -> bool {
        user < self.users.len() && !self.forgotten.contains(&user)
    }

    /// The id that operation `at` puts: the user's or, of one that does not exist, a new one.
    pub fn put_id(&mut self, at: usize, user: usize) -> UserId {
        let new = self.user_ids.last().copied().unwrap_or(0) + 3;
        let id = self.user_ids.get(user).copied().unwrap_or(new);
        UserId::new(*self.put_ids.entry(at).or_insert(id)).unwrap()
    }

    pub fn put(&mut self, at: usize, balance: i64) -> Result<String, &'static str> {
        let id = self.put_ids[&at];
        let found = self.user_ids.iter().position(|known| *known == id);
        let user = found.unwrap_or(self.users.len());
        if found.is_none() {
            self.user_ids.push(id);
            self.users.push((0, Vec::new()));
        } else if self.forgotten.contains(&user) {
            return Err("UserNotFound");
        }
        if balance > 0 && self.users[user].1.is_empty() {
            self.entry(user, TransactionType::Charge, balance);
        }
        let outcome = if found.is_some() { PutOutcome::Changed } else { PutOutcome::Created };
        Ok(format!("put {outcome:?} {}", self.users[user].0))
    }

    pub fn forget(&mut self, user: usize, forfeits: bool) -> Result<String, &'static str> {
        if !self.exists(user) {
            return Err("UserNotFound");
        }
        if self.orders.iter().any(|order| order.user == user && order.status == "PENDING") {
            return Err("OrdersOpen");
        }
        let balance = self.users[user].0;
        if balance > 0 && !forfeits {
            return Err("BalanceLeft");
        }
        if balance > 0 {
            self.entry(user, TransactionType::Payment, balance);
        }
        self.forgotten.insert(user);
        Ok("forgotten".into())
    }
}

//! Which clients a service takes packets from.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

/// Prefixes of clients, and what becomes of packets from them: the longest prefix that has the client's address
/// decides. Cheap to copy: there may be many thousand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessList(Arc<BTreeMap<IpNet, Access>>);

/// What becomes of a client's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Allow,
    Deny,
}

impl AccessList {
    /// The prefixes of one address family, each without bits beyond its length.
    #[must_use]
    pub fn new(prefixes: BTreeMap<IpNet, Access>) -> Self {
        Self(Arc::new(prefixes))
    }

    /// The prefixes with what they say, in order.
    pub fn prefixes(&self) -> impl ExactSizeIterator<Item = (IpNet, Access)> {
        self.0.iter().map(|(prefix, access)| (*prefix, *access))
    }

    /// What becomes of packets of clients that no prefix has: who says whom to let in shuts all others out.
    #[must_use]
    pub fn otherwise(&self) -> Access {
        match self.count(Access::Allow) {
            0 => Access::Allow,
            _ => Access::Deny,
        }
    }

    /// How many prefixes say this.
    #[must_use]
    pub fn count(&self, access: Access) -> usize {
        self.0.values().filter(|other| **other == access).count()
    }

    /// How many prefixes of this list `other` does not have, or has with another meaning.
    fn beyond(&self, other: &Self) -> usize {
        let missing = |(prefix, access): &(&IpNet, &Access)| other.0.get(*prefix) != Some(access);
        self.0.iter().filter(missing).count()
    }
}

/// What people read of a list that is another one than before; nothing where it is not.
#[must_use]
pub fn describe_change(before: Option<&AccessList>, after: Option<&AccessList>) -> Option<String> {
    if before == after {
        return None;
    }
    let Some(after) = after else {
        return Some("access list removed: every client is allowed".to_owned());
    };
    let others = match after.otherwise() {
        Access::Allow => "allowed",
        Access::Deny => "denied",
    };
    let what = match before {
        None => "access list added".to_owned(),
        Some(before) => format!(
            "access list changed, {} prefixes more and {} fewer",
            after.beyond(before),
            before.beyond(after)
        ),
    };
    let (allow, deny) = (after.count(Access::Allow), after.count(Access::Deny));
    Some(format!(
        "{what}: {allow} prefixes allowed, {deny} denied, other clients {others}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(prefixes: &[(&str, Access)]) -> AccessList {
        let parsed = prefixes
            .iter()
            .map(|(text, access)| (text.parse().unwrap(), *access));
        AccessList::new(parsed.collect())
    }

    #[test]
    fn who_names_friends_denies_the_others() {
        let denies = list(&[("10.0.0.0/8", Access::Deny)]);
        assert_eq!(denies.otherwise(), Access::Allow);
        let allows = list(&[("10.0.0.0/8", Access::Deny), ("10.1.0.0/16", Access::Allow)]);
        assert_eq!(allows.otherwise(), Access::Deny);
    }

    #[test]
    fn changes_are_told_in_a_line() {
        let one = list(&[("10.0.0.0/8", Access::Deny)]);
        let two = list(&[("10.0.0.0/8", Access::Allow), ("10.1.0.0/16", Access::Deny)]);
        let told = |before: Option<&AccessList>, after: Option<&AccessList>| describe_change(before, after);
        assert_eq!(told(None, None), None);
        assert_eq!(told(Some(&one), Some(&one.clone())), None);
        assert_eq!(
            told(Some(&one), Some(&two)).unwrap(),
            "access list changed, 2 prefixes more and 1 fewer: 1 prefixes allowed, 1 denied, other clients denied"
        );
        assert_eq!(
            told(None, Some(&one)).unwrap(),
            "access list added: 0 prefixes allowed, 1 denied, other clients allowed"
        );
        assert_eq!(
            told(Some(&one), None).unwrap(),
            "access list removed: every client is allowed"
        );
    }
}

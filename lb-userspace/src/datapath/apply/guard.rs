//! What a service asks of its clients: before it is asked for, a list is there; after it is not asked for any longer,
//! it goes.

use lb_common::layout::Guard;

use super::Dataplane;
use crate::config::AccessList;
use crate::control::DesiredService;
use crate::datapath::{Error, guards};
use crate::model::ServiceKey;

/// What is in force, as far as it is known.
#[derive(Debug, Default)]
pub(super) enum InForce {
    /// As somebody before us left it.
    #[default]
    Unknown,
    Known(Guard, Option<AccessList>),
}

impl Dataplane {
    /// Brings what a service asks to what it must.
    pub(super) fn write_guard(&mut self, key: &ServiceKey, service: &DesiredService) -> Result<(), Error> {
        let installed = &self.services[key];
        let index = installed.index;
        let list = service.access.as_ref();
        let guard = guards::guard(key.address.is_ipv4(), list, service.limits.as_ref());
        let same_list = matches!(&installed.guard, InForce::Known(_, known) if known.as_ref() == list);
        if same_list && matches!(&installed.guard, InForce::Known(known, _) if *known == guard) {
            return Ok(());
        }
        if guard == Guard::default() {
            self.remove_guard(index)?;
        } else {
            if let Some(list) = list.filter(|_| !same_list) {
                self.put_list(index, list)?;
            }
            self.put_guard(index, guard)?;
            if list.is_none() && !same_list {
                self.drop_list(index)?;
            }
        }
        let installed = self.services.get_mut(key).expect("there above");
        installed.guard = InForce::Known(guard, list.cloned());
        Ok(())
    }

    /// Asks nothing any longer. A list that nobody asks for, of an agent that died between two writes, costs its memory
    /// until another takes its place, and nothing else.
    pub(super) fn remove_guard(&mut self, index: u32) -> Result<(), Error> {
        if self.maps.guards.asks(index) == 0 {
            return Ok(());
        }
        self.put_guard(index, Guard::default())?;
        self.drop_list(index)
    }
}

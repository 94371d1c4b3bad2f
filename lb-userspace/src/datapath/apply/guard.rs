//! What a service asks of its clients: before it is asked for, a list is there; after it is not asked for any longer,
//! it goes.

use lb_common::layout::Guard;

use super::Dataplane;
use crate::config::AccessList;
use crate::datapath::Error;
use crate::model::ServiceKey;

/// What is in force, as far as it is known.
#[derive(Debug, Default)]
pub(super) enum InForce {
    /// As somebody before us left it.
    #[default]
    Unknown,
    Known(Option<AccessList>),
}

impl Dataplane {
    /// Brings what a service asks to what it must.
    pub(super) fn write_guard(&mut self, key: &ServiceKey, list: Option<&AccessList>) -> Result<(), Error> {
        let installed = &self.services[key];
        let index = installed.index;
        if matches!(&installed.guard, InForce::Known(known) if known.as_ref() == list) {
            return Ok(());
        }
        match list {
            Some(list) => {
                self.put_list(index, list)?;
                self.put_guard(index, Guard { asks: Guard::LIST })?;
            }
            None => self.remove_guard(index)?,
        }
        let installed = self.services.get_mut(key).expect("there above");
        installed.guard = InForce::Known(list.cloned());
        Ok(())
    }

    /// Asks nothing any longer. A list that nobody asks for, of an agent that died between two writes, costs its memory
    /// until another takes its place, and nothing else.
    pub(super) fn remove_guard(&mut self, index: u32) -> Result<(), Error> {
        if self.maps.guards.get(index) == Guard::default() {
            return Ok(());
        }
        self.put_guard(index, Guard::default())?;
        self.drop_list(index)
    }
}

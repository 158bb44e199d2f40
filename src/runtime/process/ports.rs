//! Ports for processes that listen. Each is one process's alone from before its start to its end.
//!
//! A process may take its time until it listens. Until then nothing but this list keeps its port
//! from another server, which would get its clients; and nothing but the range keeps it from
//! connections, to which the kernel gives ports above it.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, TcpListener},
    sync::{Arc, Mutex},
};

/// The first port that is given to a server which does not say which it wants: above most of those
/// that people know by heart.
const FIRST: u16 = 20_000;
/// Where the kernel's own begin, unless it says otherwise.
const KERNEL: u16 = 32_768;
/// How often the kernel is asked for one when no other is left.
const ATTEMPTS: usize = 100;

/// The ports that processes of this Perch have. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Ports(Arc<Mutex<HashSet<u16>>>);

/// A port, until it is dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    ports: Ports,
}

impl Port {
    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.ports.0.lock().expect("nobody panics while holding the ports").remove(&self.number);
    }
}

impl Ports {
    /// A port of the loopback address that nobody has.
    ///
    /// # Errors
    /// When there is none.
    pub fn any(&self) -> io::Result<Port> {
        let all = FIRST..kernel_range().max(FIRST + 1);
        // Another Perch chooses from the same ones.
        let begin = rand::random_range(all.clone());
        if let Some(port) = (begin..all.end).chain(FIRST..begin).find_map(|number| self.take(number)) {
            return Ok(port);
        }
        for _ in 0..ATTEMPTS {
            let number = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            if let Some(port) = self.take(number) {
                return Ok(port);
            }
        }
        Err(io::Error::from(io::ErrorKind::AddrInUse))
    }

    /// This port of the loopback address, if nobody has it.
    ///
    /// # Panics
    /// Never: nobody panics while holding the ports.
    pub fn take(&self, number: u16) -> Option<Port> {
        let mut held = self.0.lock().expect("nobody panics while holding the ports");
        let free = !held.contains(&number) && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok();
        free.then(|| {
            held.insert(number);
            Port { number, ports: self.clone() }
        })
    }
}

/// The first port that the kernel gives by itself.
fn kernel_range() -> u16 {
    let said = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    said.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(KERNEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_until_it_comes_back() {
        let ports = Ports::default();
        let held: Vec<Port> = (0..200).map(|_| ports.any().unwrap()).collect();
        let numbers: HashSet<u16> = held.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), held.len(), "nobody listens yet, and still each has its own");
        assert!(numbers.iter().all(|number| *number < kernel_range()), "{numbers:?}");
        let first = held[0].number();
        assert!(ports.clone().take(first).is_none(), "asked for by number");
        drop(held);
        assert!(ports.take(first).is_some());
    }

    #[test]
    fn what_another_program_has_is_not_given() {
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(Ports::default().take(other.local_addr().unwrap().port()).is_none());
    }
}

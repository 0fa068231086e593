//! Real processes on machines of their own: networks, links, limits.

mod limits;
mod networks;
mod threads;

//! Real processes on machines of their own: networks, links, limits.

mod networks;

//! Placeholder of the facade.

//! Part of the router.

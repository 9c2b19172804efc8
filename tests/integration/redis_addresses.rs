//! The ways to reach Redis: RESP3, TLS with client certificates, Sentinels, a cluster whose certificates have host names.

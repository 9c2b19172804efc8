//! PostgreSQL with TLS: which certificates each `sslmode` accepts.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::process::binary::{Servers, run};

/// An authority of its own, in PEM, and a server's certificate with its key, for this host name or address.
fn private_authority(host: &str) -> (String, String, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let server_key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&server_key, &issuer).unwrap();
    (authority.pem(), server.pem(), server_key.serialize_pem())
}

/// Has the server speak TLS with this certificate.
async fn encrypt(servers: &Servers, certificate: &str, key: &str) {
    let data = servers.postgres.data_dir();
    let owner = fs::metadata(data).unwrap();
    for (name, text) in [("server.crt", certificate), ("server.key", key)] {
        let path = data.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let db = servers.db().await;
    for sql in ["ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"] {
        sqlx::query(sql).execute(db.get_postgres_connection_pool()).await.unwrap();
    }
    db.close().await.unwrap();
}

#[tokio::test]
async fn certificate_refused_when_authority_unknown() {
    let servers = Servers::start().await;
    let (authority, certificate, key) = private_authority("127.0.0.1");
    let (foreign, ..) = private_authority("127.0.0.1");
    encrypt(&servers, &certificate, &key).await;
    let file = |name: &str, text: &str| {
        let path = servers.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ours, theirs) = (file("authority.pem", &authority), file("stranger.pem", &foreign));
    let plain = servers.postgres_url.replace("?sslmode=disable", "");
    let with_name = plain.replace("127.0.0.1", "localhost");
    // URL, the system's store, and why it is refused.
    for (url, store, refused) in [
        (format!("{plain}?sslmode=require"), &theirs, None),
        (format!("{plain}?sslmode=verify-full&sslrootcert={ours}"), &theirs, None),
        // The store of the system, where this program finds it.
        (format!("{plain}?sslmode=verify-full"), &ours, None),
        (format!("{plain}?sslmode=verify-ca"), &ours, None),
        (format!("{with_name}?sslmode=verify-ca&sslrootcert={ours}"), &theirs, None),
        (format!("{with_name}?sslmode=verify-full&sslrootcert={ours}"), &theirs, Some("certificate is not accepted")),
        (format!("{plain}?sslmode=verify-full"), &theirs, Some("certificate is not accepted")),
        (format!("{plain}?sslmode=verify-full&sslrootcert={theirs}"), &theirs, Some("certificate is not accepted")),
        (format!("{plain}?sslmode=verify-full&sslrootcert=/nonexistent"), &ours, Some("sslrootcert can't be read")),
    ] {
        for role in ["migrate", "audit"] {
            let mut command = servers.role(&[role]);
            let (status, said) = run(command.env("DATABASE_URL", &url).env("SSL_CERT_FILE", store)).await;
            match refused {
                // Until there is a store there is nothing to audit.
                None => assert!(status.success() || said.contains("has no store"), "{role} {url}: {said}"),
                Some(why) => assert!(!status.success() && said.contains(why), "{role} {url}: {said}"),
            }
        }
    }
    for role in ["migrate", "seed"] {
        let url = format!("{plain}?sslmode=verify-full&sslrootcert={ours}");
        assert!(run(servers.role(&[role]).env("DATABASE_URL", url)).await.0.success());
    }
    // Waiting does not repair a certificate.
    let url = format!("{plain}?sslmode=verify-full");
    let (status, said) = run(servers.role(&["serve"]).env("DATABASE_URL", url).env("SSL_CERT_FILE", &theirs)).await;
    assert!(status.code() == Some(1) && said.contains("sslrootcert"), "{said}");
    let mut project = servers.start_role(&["project"], "project");
    crate::support::harness::until("it projects", async || project.logged("projecting")).await;
    project.stop().await;
    servers.end().await;
}

#[tokio::test]
async fn connection_refused_when_server_has_no_tls() {
    let servers = Servers::start().await;
    let url = servers.postgres_url.replace("sslmode=disable", "sslmode=require");
    let (status, said) = run(servers.role(&["migrate"]).env("DATABASE_URL", url)).await;
    assert!(status.code() == Some(1) && said.contains("TLS to PostgreSQL fails"), "{said}");
    for role in ["migrate", "seed"] {
        assert!(run(&mut servers.role(&[role])).await.0.success());
    }
    let mut project = servers.start_role(&["project"], "project");
    crate::support::harness::until("it projects", async || project.logged("projecting")).await;
    project.stop().await;
    servers.end().await;
}

//! PostgreSQL with TLS: which certificates each `sslmode` accepts.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::process::binary::{Servers, run};

/// A new certificate authority, a server certificate for this host name or address, and the server's key, in PEM.
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

/// Makes the server use TLS with this certificate.
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
    let (authority_file, foreign_file) = (file("authority.pem", &authority), file("foreign.pem", &foreign));
    let plain = servers.postgres_url.replace("?sslmode=disable", "");
    let with_name = plain.replace("127.0.0.1", "localhost");
    // URL, the system's certificate store, and the reason of the refusal.
    for (url, store, refused) in [
        (format!("{plain}?sslmode=require"), &foreign_file, None),
        (format!("{plain}?sslmode=verify-full&sslrootcert={authority_file}"), &foreign_file, None),
        // Without `sslrootcert` the program uses the system's store.
        (format!("{plain}?sslmode=verify-full"), &authority_file, None),
        (format!("{plain}?sslmode=verify-ca"), &authority_file, None),
        (format!("{with_name}?sslmode=verify-ca&sslrootcert={authority_file}"), &foreign_file, None),
        (
            format!("{with_name}?sslmode=verify-full&sslrootcert={authority_file}"),
            &foreign_file,
            Some("certificate is not accepted"),
        ),
        (format!("{plain}?sslmode=verify-full"), &foreign_file, Some("certificate is not accepted")),
        (
            format!("{plain}?sslmode=verify-full&sslrootcert={foreign_file}"),
            &foreign_file,
            Some("certificate is not accepted"),
        ),
        (
            format!("{plain}?sslmode=verify-full&sslrootcert=/nonexistent"),
            &authority_file,
            Some("sslrootcert can't be read"),
        ),
    ] {
        for role in ["migrate", "audit"] {
            let mut command = servers.role(&[role]);
            let (status, output) = run(command.env("DATABASE_URL", &url).env("SSL_CERT_FILE", store)).await;
            match refused {
                // The audit connects, and finds no store before the first start.
                None => assert!(status.success() || output.contains("has no store"), "{role} {url}: {output}"),
                Some(why) => assert!(!status.success() && output.contains(why), "{role} {url}: {output}"),
            }
        }
    }
    for role in ["migrate", "seed"] {
        let url = format!("{plain}?sslmode=verify-full&sslrootcert={authority_file}");
        assert!(run(servers.role(&[role]).env("DATABASE_URL", url)).await.0.success());
    }
    // A start does not wait after a TLS error.
    let url = format!("{plain}?sslmode=verify-full");
    let (status, output) =
        run(servers.role(&["serve"]).env("DATABASE_URL", url).env("SSL_CERT_FILE", &foreign_file)).await;
    assert!(status.code() == Some(1) && output.contains("sslrootcert"), "{output}");
    let mut project = servers.start_role(&["project"], "project");
    crate::support::harness::until("the projector runs", async || project.logged("projecting")).await;
    project.stop().await;
    servers.end().await;
}

#[tokio::test]
async fn connection_refused_when_server_has_no_tls() {
    let servers = Servers::start().await;
    let url = servers.postgres_url.replace("sslmode=disable", "sslmode=require");
    let (status, output) = run(servers.role(&["migrate"]).env("DATABASE_URL", url)).await;
    assert!(status.code() == Some(1) && output.contains("TLS to PostgreSQL fails"), "{output}");
    for role in ["migrate", "seed"] {
        assert!(run(&mut servers.role(&[role])).await.0.success());
    }
    let mut project = servers.start_role(&["project"], "project");
    crate::support::harness::until("the projector runs", async || project.logged("projecting")).await;
    project.stop().await;
    servers.end().await;
}

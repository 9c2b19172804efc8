// A real identity provider on the loopback interface, for the sign-in of operators: node-oidc-provider with its own pages.
//
//   node provider.mjs PORT CLIENT_ID CLIENT_SECRET REDIRECT_URI
//
// Who signs in as kim-viewer has the role viewer; a name without a role has none.

import Provider from 'oidc-provider';

// Standard output has one line: that it listens.
console.info = console.warn = console.error;

const [port, client_id, client_secret, redirect_uri] = process.argv.slice(2);

const account = (name) => ({ sub: name, email: `${name}@shop.example`, email_verified: true, roles: [name.split('-')[1] ?? 'buyer'] });

const provider = new Provider(`http://127.0.0.1:${port}`, {
    clients: [{ client_id, client_secret, redirect_uris: [redirect_uri], response_types: ['code'], grant_types: ['authorization_code'] }],
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['roles'] },
    // The claims of the scopes are in the ID token.
    conformIdTokenClaims: false,
    findAccount: (_, name) => ({ accountId: name, claims: () => account(name) }),
    cookies: { keys: [client_secret] },
    features: { devInteractions: { enabled: true } },
    pkce: { required: () => true },
});
provider.listen(Number(port), '127.0.0.1', () => console.log('listening'));

// A real OpenID provider (npm: oidc-provider) for the tests.
// node provider.mjs MODULES CERTIFICATE KEY; prints its address; takes commands as lines of JSON:
// {"rotate": true} changes its keys, {"lifetime": seconds} those of tokens, {"claims": {…}} adds some.
import { createServer } from 'node:https';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { createInterface } from 'node:readline';

const [modules, certificate, key] = process.argv.slice(2);
const entry = pathToFileURL(`${modules}/node_modules/oidc-provider/lib/index.js`);
const { Provider } = await import(entry.href);

// Standard output is for what the tests read.
console.info = console.error;
let lifetime = 600;
let claims = {};
let requests = 0;
let current;

function newKey() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'RS256' };
}

function makeProvider(issuer) {
  const provider = new Provider(issuer, {
    jwks: { keys: [newKey()] },
    cookies: { keys: ['only for tests'] },
    clients: [
      {
        client_id: 'federated-dask',
        token_endpoint_auth_method: 'none',
        grant_types: ['urn:ietf:params:oauth:grant-type:device_code', 'refresh_token'],
        redirect_uris: [],
        response_types: [],
      },
      {
        client_id: 'robot',
        client_secret: 'secret',
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
      },
    ],
    findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    extraTokenClaims: (ctx, token) => (token.clientId === 'robot' ? { sub: 'robot', ...claims } : claims),
    rotateRefreshToken: true,
    features: {
      deviceFlow: { enabled: true },
      clientCredentials: { enabled: true },
      devInteractions: { enabled: true },
      resourceIndicators: {
        enabled: true,
        useGrantedResource: () => true,
        getResourceServerInfo: (ctx, resource) => ({
          scope: '',
          audience: resource,
          accessTokenFormat: 'jwt',
          accessTokenTTL: lifetime,
          jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
  });
  return provider.callback();
}

const server = createServer(
  { cert: readFileSync(certificate), key: readFileSync(key) },
  (request, response) => {
    requests += request.url.includes('jwks') ? 1 : 0;
    current(request, response);
  },
);
server.listen(0, '127.0.0.1', () => {
  const issuer = `https://127.0.0.1:${server.address().port}`;
  current = makeProvider(issuer);
  console.log(JSON.stringify({ issuer }));
  createInterface({ input: process.stdin })
    .on('line', (line) => {
      const command = JSON.parse(line);
      if (command.rotate) current = makeProvider(issuer);
      lifetime = command.lifetime ?? lifetime;
      claims = command.claims ?? claims;
      console.log(JSON.stringify({ requests }));
    })
    .on('close', () => process.exit(0));
});

// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

// A client of Certbound made with openid-client and nothing of ours, for scripts/interop/run: it gets a token with one
// certificate and calls a resource server with that token on a connection of another. It reads the environment and
// prints what came of it: "token CODE" or "token ok, call CODE", where a code is ok or a registered error code.

import { readFileSync } from 'node:fs'
import { webcrypto } from 'node:crypto'
import * as undici from 'undici'

globalThis.crypto ??= webcrypto // Node 18, which Debian 12 has
const client = await import('openid-client')

const { ISSUER, ROOTS, CLIENT_ID, SCOPE, RESOURCE_URL, AUTH_METHOD } = process.env

// fetchWith returns a fetch that trusts the service's roots and shows a certificate, or none where no file is named.
function fetchWith(cert, key) {
  const connect = { ca: readFileSync(ROOTS) }
  if (cert) {
    connect.cert = readFileSync(cert)
    connect.key = readFileSync(key)
  }
  const dispatcher = new undici.Agent({ connect, keepAliveTimeout: 10 })
  return (url, options) => undici.fetch(url, { ...options, dispatcher })
}

// code returns the registered error code of a refusal, from the body or from the challenge; any other error is thrown on.
function code(error) {
  const found = error.error ?? error.cause?.error ?? error.cause?.[0]?.parameters?.error
  if (typeof found !== 'string') throw error
  return found
}

const config = await client.discovery(
  new URL(ISSUER),
  CLIENT_ID,
  { token_endpoint_auth_method: AUTH_METHOD, use_mtls_endpoint_aliases: true },
  client.TlsClientAuth(),
  { algorithm: 'oauth2', [client.customFetch]: fetchWith(process.env.TOKEN_CERT, process.env.TOKEN_KEY) },
)

async function run() {
  let token
  try {
    token = await client.clientCredentialsGrant(config, { scope: SCOPE })
  } catch (error) {
    return `token ${await challenged(error)}`
  }
  config[client.customFetch] = fetchWith(process.env.CALL_CERT, process.env.CALL_KEY)
  try {
    const response = await client.fetchProtectedResource(config, token.access_token, new URL(RESOURCE_URL), 'POST')
    return `token ok, call ${response.ok ? 'ok' : (await response.json()).error}`
  } catch (error) {
    return `token ok, call ${code(error)}`
  }
}

// challenged returns the code of a refused token request. The library stops at the challenge that goes with a 401 (RFC
// 6749, Section 5.2) and leaves the body to us.
async function challenged(error) {
  if (error.response && !error.response.bodyUsed) {
    const { error: found } = await error.response.clone().json()
    if (found) return found
  }
  return code(error)
}

console.log(await run())

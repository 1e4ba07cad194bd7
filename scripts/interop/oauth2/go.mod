// A module of its own, so that the service's depends on nothing for the sake of this client.
module github.com/certbound/certbound/scripts/interop/oauth2

go 1.26.6

require golang.org/x/oauth2 v0.36.0

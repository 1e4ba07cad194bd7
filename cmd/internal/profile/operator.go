// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/certbound/certbound/tokens/client"
)

const adminPath = "/admin/v1"

// Operator calls the admin API with a bound token, as any client calls a resource server. It is safe for concurrent
// use and must be closed.
type Operator struct {
	profile   *Profile
	transport *client.Transport
	http      *http.Client
}

// NewOperator makes the operators' client of a profile. It asks the network nothing. Its token is for the admin API
// and names no scope: it carries whatever the operator may do there, which need not be everything.
func NewOperator(p *Profile) (*Operator, error) {
	origin, err := originOf(p.info.MTLSURL)
	if err != nil {
		return nil, err
	}
	resource := strings.TrimSuffix(p.info.Issuer, "/") + adminPath
	t, err := p.transport(context.Background(), nil, []string{resource}, []string{origin})
	if err != nil {
		return nil, err
	}
	return &Operator{
		profile:   p,
		transport: t,
		http:      &http.Client{Transport: t, Timeout: 2 * callTimeout, CheckRedirect: noRedirect},
	}, nil
}

// Close closes the connections.
func (o *Operator) Close() { o.transport.Close() }

// Do calls a path of the admin API, "/clients" for example, with in as JSON unless it is nil, and reads the answer
// into out unless that is nil. A refusal is an *APIError, what waits for a second operator an *AcceptedError. It blocks until the answer is there or ctx ends; a profile
// past half its certificate's life is renewed first.
func (o *Operator) Do(ctx context.Context, method, path string, in, out any) error {
	if _, err := o.profile.RenewIfDue(ctx); err != nil {
		// A renewal that failed is no reason to refuse while the certificate is good: it is tried again next time.
		if lapsed, ok := errors.AsType[*LapsedError](err); ok {
			return lapsed
		}
	}
	err := call(ctx, o.http, method, o.profile.MTLSURL()+adminPath+path, in, out)
	if _, waits := errors.AsType[*AcceptedError](err); err == nil || waits {
		return err
	}
	return o.profile.explain(err)
}

// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/certbound/certbound/cmd/internal/audit"
	"github.com/certbound/certbound/cmd/internal/store"
)

// The changes that may have to wait for a second operator, by the names that record and approvals give them.
const (
	clientAdd          = "client.add"
	clientEnable       = "client.enable"
	clientInvite       = "client.invite"
	clientCertificates = "client.certificates"
	trustAdd           = "trust.add"
	trustReplace       = "trust.replace"
	trustRemove        = "trust.remove"
	auditErase         = "audit.erase"
	keyRotate          = "key.rotate"
)

const approvalConfirm = "approval.confirm"

// kind is a change that is judged first and made later, at once or when a second operator confirms it.
type kind struct {
	status int        // of the answer when it is made
	body   func() any // a new empty request body
	judge  func(ctx context.Context, target string, body any) (*proposal, error)
}

func kindOf[In any](status int, judge func(context.Context, string, *In) (*proposal, error)) kind {
	return kind{
		status: status,
		body:   func() any { return new(In) },
		judge: func(ctx context.Context, target string, body any) (*proposal, error) {
			return judge(ctx, target, body.(*In))
		},
	}
}

func (a *api) allKinds() map[string]kind {
	return map[string]kind{
		clientAdd:          kindOf(http.StatusCreated, a.addClient),
		clientEnable:       kindOf(http.StatusOK, a.enableClient),
		clientInvite:       kindOf(http.StatusCreated, a.inviteClient),
		clientCertificates: kindOf(http.StatusOK, a.setCertificates),
		trustAdd:           kindOf(http.StatusCreated, a.addTrust),
		trustReplace:       kindOf(http.StatusOK, a.replaceTrust),
		trustRemove:        kindOf(http.StatusOK, a.removeTrust),
		auditErase:         kindOf(http.StatusOK, a.eraseSubject),
		keyRotate:          kindOf(http.StatusOK, a.rotateKeys),
	}
}

// proposal is a change that was judged and not made.
type proposal struct {
	event audit.Event // what to record of it
	needs []string    // scopes that whoever asks for it and whoever confirms it must hold, all of them
	anyOf []string    // scopes of which one is needed besides; empty: none
	waits bool        // a second operator must confirm it, where two are asked for
	shown shown       // what the second operator sees
	deed              // what it comes to
}

// insisting makes a proposal one for the service's own names. Whoever has those can pose as the service, so it takes the
// scope that makes operators, and a second one to agree.
func (p *proposal) insisting() {
	p.needs, p.waits, p.shown.AllowReserved = appendNew(slices.Clone(p.needs), ScopeGrant), true, true
	p.event.Detail = detailed(p.event.Detail, map[string]string{"allow_reserved": "true"})
}

// shown is what a second operator agrees to.
type shown struct {
	Client *Client `json:"client,omitempty"`
	Trust  *Trust  `json:"trust,omitempty"`
	// AllowReserved says that the service's own names are asked for.
	AllowReserved bool `json:"allow_reserved,omitempty"`
	// Present identifies what is there now and would be replaced or built upon, where that is not among what is shown,
	// which has the time of its last change.
	Present string `json:"present,omitempty"`
}

// digest identifies a row of the store by all that is in it, with the time of its last change: one that was changed and
// changed back is another.
func digest(row any) string {
	raw, err := json.Marshal(row)
	if err != nil {
		return rand.Text() // what cannot be compared counts as changed
	}
	sum := sha256.Sum256(raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// waiting is the payload of a request that waits.
type waiting struct {
	Target  string          `json:"target"`
	Needs   []string        `json:"needs"`
	Request json.RawMessage `json:"request"`
	Shown   json.RawMessage `json:"shown"`
}

// asked is the action of asking for a change of that kind.
func (a *api) asked(name string) action {
	k := a.kinds[name]
	judge := func(r *http.Request, body any) (*deed, error) {
		return a.propose(r.Context(), name, target(r, body), body)
	}
	return action{body: k.body, judge: judge}
}

// propose judges a change, which is made at once unless it has to wait.
func (a *api) propose(ctx context.Context, name, target string, body any) (*deed, error) {
	k := a.kinds[name]
	p, err := k.judge(ctx, target, body)
	if err != nil {
		return nil, err
	}
	if err := a.needAll(ctx, p.needs); err != nil {
		return nil, err
	}
	if len(p.anyOf) > 0 {
		if err := a.needAny(ctx, p.anyOf); err != nil {
			return nil, err
		}
	}
	two, err := a.twoNeeded(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	if p.waits && two {
		return a.wait(ctx, name, target, body, p)
	}
	// An operator's fresh code is the way out when nothing else works: it waits for no room in the journal. Redeeming it
	// does.
	p.takes = p.takes || a.onlyOperators
	made := p.do
	p.do = func(ctx context.Context, tx *store.Store) (*outcome, error) {
		done, err := made(ctx, tx)
		if err != nil {
			return nil, err
		}
		done.status = k.status
		if done.name == "" {
			done.events = []audit.Event{p.event}
		}
		return done, nil
	}
	return &p.deed, nil
}

// pairedSetting is the setting that says that two operators were there once.
const pairedSetting = "admin.paired"

// twoNeeded reports whether changes that wait do wait: where they are configured to, once there were two operators. Before
// a transaction it keeps that there are two; what is judged in one finds it kept.
func (a *api) twoNeeded(ctx context.Context) (bool, error) {
	paired, found, err := a.foundTwo(ctx)
	if err != nil || paired || !found {
		return paired, err
	}
	if isWithin(ctx) {
		return true, nil
	}
	return true, a.pair(ctx)
}

// foundTwo reports whether two operators are known to have been there, and else whether they are now.
func (a *api) foundTwo(ctx context.Context) (paired, found bool, err error) {
	if a.cfg.Approvals < 2 || a.paired.Load() {
		return a.cfg.Approvals > 1, false, nil
	}
	switch _, err := a.db(ctx).Setting(ctx, pairedSetting); {
	case err == nil:
		if !isWithin(ctx) { // that may be undone
			a.paired.Store(true)
		}
		return true, false, nil
	case !errors.Is(err, store.ErrNotFound):
		return false, false, err
	}
	n, err := a.db(ctx).Grantors(ctx)
	return false, n > 1, err
}

// pair keeps that two operators were there, for good and on record: from now on one of them alone can do less.
func (a *api) pair(ctx context.Context) error {
	_, err := a.cfg.Recorder.Change(ctx, audit.Takeaway, func(tx *store.Store) ([]audit.Event, error) { return a.setPaired(ctx, tx) })
	return err
}

// setPaired is pair in the transaction tx. It returns no events when somebody else has kept it.
func (a *api) setPaired(ctx context.Context, tx *store.Store) ([]audit.Event, error) {
	now := a.cfg.Now().UTC().Format(time.RFC3339)
	if kept, err := tx.SetOnce(ctx, pairedSetting, now); err != nil || kept != now {
		return nil, err
	}
	return a.granted(ctx, "setting.set", []audit.Event{{Detail: map[string]string{pairedSetting: now}}}), nil
}

// wait is to keep a change until a second operator confirms it.
func (a *api) wait(ctx context.Context, name, target string, body any, p *proposal) (*deed, error) {
	held, err := a.hold(ctx, name, target, body, p)
	if err != nil {
		return nil, unavailable(err)
	}
	do := func(ctx context.Context, tx *store.Store) (*outcome, error) {
		row, err := tx.AddPending(ctx, held)
		if err != nil {
			return nil, approvalError(err)
		}
		event := p.event
		event.Detail = detailed(event.Detail, map[string]string{"kind": name, "approval": row.ID})
		answer, err := approvalView(row)
		if err != nil {
			return nil, unavailable(err)
		}
		return &outcome{answer: answer, status: http.StatusAccepted, name: "approval.request", events: []audit.Event{event}}, nil
	}
	return &deed{do: do, again: "certbound approval list shows it"}, nil
}

func (a *api) hold(ctx context.Context, name, target string, body any, p *proposal) (store.Pending, error) {
	request, err := json.Marshal(body)
	if err != nil {
		return store.Pending{}, err
	}
	show, err := json.Marshal(p.shown)
	if err != nil {
		return store.Pending{}, err
	}
	payload, err := json.Marshal(waiting{Target: target, Needs: p.needs, Request: request, Shown: show})
	if err != nil {
		return store.Pending{}, err
	}
	who, _, _, _ := a.cfg.Actor(ctx)
	return store.Pending{Kind: name, Payload: payload, RequestedBy: who}, nil
}

func detailed(detail, more map[string]string) map[string]string {
	detail = maps.Clone(detail)
	if detail == nil {
		detail = make(map[string]string)
	}
	maps.Copy(detail, more)
	return detail
}

func approvalView(row store.Pending) (Approval, error) {
	held, err := payloadOf(row)
	if err != nil {
		return Approval{}, err
	}
	var show shown
	if err := json.Unmarshal(held.Shown, &show); err != nil {
		return Approval{}, fmt.Errorf("reading a request that waits: %w", err)
	}
	return Approval{
		ID: row.ID, Kind: row.Kind, Target: held.Target,
		Client: show.Client, Trust: show.Trust, AllowReserved: show.AllowReserved, Needs: present(held.Needs),
		RequestedBy: row.RequestedBy, CreatedAt: row.CreatedAt.UTC(), ExpiresAt: row.ExpiresAt.UTC(),
	}, nil
}

func payloadOf(row store.Pending) (waiting, error) {
	var held waiting
	if err := json.Unmarshal(row.Payload, &held); err != nil {
		return waiting{}, fmt.Errorf("reading a request that waits: %w", err)
	}
	return held, nil
}

func (a *api) listApprovals(r *http.Request) (any, error) {
	rows, err := a.db(r.Context()).Pending(r.Context())
	if err != nil {
		return nil, unavailable(err)
	}
	list := ApprovalList{Approvals: make([]Approval, 0, len(rows))}
	for _, row := range rows {
		view, err := approvalView(row)
		if err != nil {
			return nil, unavailable(err)
		}
		list.Approvals = append(list.Approvals, view)
	}
	return list, nil
}

// waitingRow finds a request that waits.
func (a *api) waitingRow(ctx context.Context, id string) (store.Pending, waiting, error) {
	rows, err := a.db(ctx).Pending(ctx)
	if err != nil {
		return store.Pending{}, waiting{}, unavailable(err)
	}
	i := slices.IndexFunc(rows, func(row store.Pending) bool { return row.ID == id })
	if i < 0 {
		return store.Pending{}, waiting{}, approvalError(store.ErrNotFound)
	}
	held, err := payloadOf(rows[i])
	if err != nil {
		return store.Pending{}, waiting{}, unavailable(err)
	}
	return rows[i], held, nil
}

// confirm makes a change that waited, if it is still what was shown. It answers what the request would have answered.
func (a *api) confirm(r *http.Request, _ *none) (*deed, error) {
	ctx, id := r.Context(), pathID(r)
	row, held, err := a.waitingRow(ctx, id)
	if err != nil {
		return nil, err
	}
	p, err := a.judgeAgain(ctx, row.Kind, held)
	if err != nil {
		return nil, err
	}
	if err := a.needAll(ctx, p.needs); err != nil {
		return nil, err
	}
	who, _, _, _ := a.cfg.Actor(ctx)
	made := p.do
	p.do = func(ctx context.Context, tx *store.Store) (*outcome, error) {
		if _, err := tx.TakePending(ctx, id, who); err != nil {
			return nil, approvalError(err)
		}
		done, err := made(ctx, tx)
		if err != nil {
			return nil, err
		}
		done.status = a.kinds[row.Kind].status
		if done.name == "" {
			done.name, done.events = row.Kind, []audit.Event{p.event}
		}
		for i := range done.events {
			done.events[i].Detail = detailed(done.events[i].Detail, map[string]string{"approval": id, "requested_by": row.RequestedBy})
		}
		return done, nil
	}
	return &p.deed, nil
}

// judgeAgain judges a request that waited by what holds now. What came out differently is not what anybody agreed to.
func (a *api) judgeAgain(ctx context.Context, name string, held waiting) (*proposal, error) {
	k, ok := a.kinds[name]
	if !ok {
		return nil, unavailable(fmt.Errorf("a request of unknown kind %q waits", name))
	}
	body := k.body()
	if err := json.Unmarshal(held.Request, body); err != nil {
		return nil, unavailable(fmt.Errorf("reading a request that waits: %w", err))
	}
	p, err := k.judge(ctx, held.Target, body)
	if err != nil {
		return nil, err
	}
	show, err := json.Marshal(p.shown)
	if err != nil {
		return nil, unavailable(err)
	}
	if !bytes.Equal(show, held.Shown) || !slices.Equal(p.needs, held.Needs) {
		return nil, conflict(codeRequest, "what it is about has changed since it was asked for", "certbound approval reject it, and ask again")
	}
	return p, nil
}

// rejectApproval drops a request that waits: who may confirm it may reject it, and who asked for it may withdraw it.
func (a *api) rejectApproval(r *http.Request, _ *none) (*deed, error) {
	ctx, id := r.Context(), pathID(r)
	row, held, err := a.waitingRow(ctx, id)
	if err != nil {
		return nil, err
	}
	if who, _, _, _ := a.cfg.Actor(ctx); who != row.RequestedBy {
		if err := a.needAll(ctx, held.Needs); err != nil {
			return nil, err
		}
	}
	event := audit.Event{Detail: map[string]string{"approval": id, "kind": row.Kind, "target": held.Target, "requested_by": row.RequestedBy}}
	return &deed{takes: true, do: func(ctx context.Context, tx *store.Store) (*outcome, error) {
		if _, err := tx.DropPending(ctx, id); err != nil {
			return nil, approvalError(err)
		}
		return &outcome{answer: &Change{Approval: id, Done: "rejected"}, events: []audit.Event{event}}, nil
	}}, nil
}

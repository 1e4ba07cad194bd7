// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"

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
	}
}

// proposal is a change that was judged and not made.
type proposal struct {
	event audit.Event // what to record of it
	needs []string    // scopes that whoever asks for it and whoever confirms it must hold, all of them
	waits bool        // a second operator must confirm it, where two are asked for
	shown shown       // what the second operator sees
	do    func(context.Context) (*outcome, error)
}

// shown is what a second operator agrees to.
type shown struct {
	Client *Client `json:"client,omitempty"`
	Trust  *Trust  `json:"trust,omitempty"`
}

// waiting is the payload of a request that waits.
type waiting struct {
	Target  string          `json:"target"`
	Needs   []string        `json:"needs"`
	Request json.RawMessage `json:"request"`
	Shown   json.RawMessage `json:"shown"`
}

// asked handles a request for a change of that kind.
func (a *api) asked(name string) http.HandlerFunc {
	k := a.kinds[name]
	return func(w http.ResponseWriter, r *http.Request) {
		body := k.body()
		if err := readBody(w, r, body); err != nil {
			a.refuseChange(w, r, about(name, pathID(r)), err)
			return
		}
		id := target(r, body)
		p, done, err := a.propose(r.Context(), name, id, body)
		if err != nil {
			a.refuseChange(w, r, about(name, id), err)
			return
		}
		if done == nil {
			a.answerHeld(w, r, name, id, body, p)
			return
		}
		done.events = []audit.Event{p.event}
		if err := a.settle(r.Context(), name, done); err != nil {
			a.refuse(w, r, err)
			return
		}
		writeJSON(w, k.status, done.answer)
	}
}

// propose judges a change and makes it, unless it has to wait: then there is no outcome.
func (a *api) propose(ctx context.Context, name, target string, body any) (*proposal, *outcome, error) {
	a.registering.Lock()
	defer a.registering.Unlock()
	p, err := a.kinds[name].judge(ctx, target, body)
	if err != nil {
		return nil, nil, err
	}
	if err := a.needAll(ctx, p.needs); err != nil {
		return nil, nil, err
	}
	if p.waits && a.cfg.Approvals > 1 {
		return p, nil, nil
	}
	done, err := p.do(ctx)
	return p, done, err
}

// answerHeld keeps a change until a second operator confirms it.
func (a *api) answerHeld(w http.ResponseWriter, r *http.Request, name, target string, body any, p *proposal) {
	row, err := a.hold(r.Context(), name, target, body, p)
	if err != nil {
		a.refuseChange(w, r, about(name, target), approvalError(err))
		return
	}
	event := p.event
	event.Detail = detailed(event.Detail, map[string]string{"kind": name, "approval": row.ID})
	done := &outcome{
		events: []audit.Event{event},
		undo: func(ctx context.Context) error {
			_, err := a.cfg.Store.DropPending(ctx, row.ID)
			return err
		},
	}
	if err := a.settle(r.Context(), "approval.request", done); err != nil {
		a.refuse(w, r, err)
		return
	}
	answer, err := approvalView(row)
	if err != nil {
		a.refuse(w, r, unavailable(err))
		return
	}
	writeJSON(w, http.StatusAccepted, answer)
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
	return a.cfg.Store.AddPending(ctx, store.Pending{Kind: name, Payload: payload, RequestedBy: who})
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
		ID: row.ID, Kind: row.Kind, Target: held.Target, Client: show.Client, Trust: show.Trust, Needs: present(held.Needs),
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
	rows, err := a.cfg.Store.Pending(r.Context())
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
	rows, err := a.cfg.Store.Pending(ctx)
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
func (a *api) confirm(w http.ResponseWriter, r *http.Request) {
	id := pathID(r)
	if err := readBody(w, r, new(none)); err != nil {
		a.refuseChange(w, r, about(approvalConfirm, id), err)
		return
	}
	row, done, err := a.confirmed(r.Context(), id)
	if err != nil {
		a.refuseChange(w, r, about(approvalConfirm, id), err)
		return
	}
	if err := a.settle(r.Context(), row.Kind, done); err != nil {
		a.refuse(w, r, err)
		return
	}
	writeJSON(w, a.kinds[row.Kind].status, done.answer)
}

func (a *api) confirmed(ctx context.Context, id string) (store.Pending, *outcome, error) {
	a.registering.Lock()
	defer a.registering.Unlock()
	row, held, err := a.waitingRow(ctx, id)
	if err != nil {
		return row, nil, err
	}
	p, err := a.judgeAgain(ctx, row.Kind, held)
	if err != nil {
		return row, nil, err
	}
	if err := a.needAll(ctx, p.needs); err != nil {
		return row, nil, err
	}
	who, _, _, _ := a.cfg.Actor(ctx)
	if _, err := a.cfg.Store.TakePending(ctx, id, who); err != nil {
		return row, nil, approvalError(err)
	}
	done, err := p.do(ctx)
	if err != nil {
		return row, nil, err
	}
	event := p.event
	event.Detail = detailed(event.Detail, map[string]string{"approval": id, "requested_by": row.RequestedBy})
	done.events = []audit.Event{event}
	return row, done, nil
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
func (a *api) rejectApproval(r *http.Request, _ *none) (*outcome, error) {
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
	if _, err := a.cfg.Store.DropPending(ctx, id); err != nil {
		return nil, approvalError(err)
	}
	answer := &Change{Approval: id, Done: "rejected"}
	event := audit.Event{Detail: map[string]string{"approval": id, "kind": row.Kind, "target": held.Target, "requested_by": row.RequestedBy}}
	return &outcome{answer: answer, events: []audit.Event{event}, pending: func() { answer.AuditPending = true }}, nil
}

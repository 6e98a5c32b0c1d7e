package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"guywire/discovery/invite"
	"guywire/mesh"
	"guywire/store"
	"guywire/store/cache"
)

// JoinRequest is what a node asks for when it joins.
type JoinRequest struct {
	Name     string
	Prefixes []netip.Prefix // of its site, masked
	// Check looks at the pools of the mesh before the token is used, for what
	// only this machine can know: networks of its own that overlap them. nil:
	// no check.
	Check func(pool4, pool6 netip.Prefix) error
}

// Progress is told each step of a join as it succeeds, with slog-like pairs.
// nil: nobody listens.
type Progress func(step string, fields ...any)

// Join makes this machine a member by a token. The token's servers are dialled
// side by side and asked in the order in which they answer, until one admits
// this machine; nothing is sent to a server whose CA the token does not pin. A join whose answer was lost is
// completed by joining again with the same token and the same identity.
// Nothing of it is left behind when it fails.
func Join(ctx context.Context, config Config, tokenText string, request JoinRequest, progress Progress) (*Plane, error) {
	if progress == nil {
		progress = func(string, ...any) {}
	}
	token, err := invite.Parse(tokenText)
	if err != nil {
		return nil, err
	}
	if request.Name == "" {
		return nil, errors.New("a node needs a name; join with --name NAME")
	}
	if err := mesh.CheckName(request.Name); err != nil {
		return nil, err
	}
	f, err := prepare(config)
	if err != nil {
		return nil, err
	}
	p, err := join(ctx, config, f, token, request, progress)
	if err != nil {
		return nil, errors.Join(err, f.clear(), f.close())
	}
	return p, nil
}

// prepare opens the state folder of a machine that is in no mesh and removes
// what an interrupted attempt left.
func prepare(config Config) (files, error) {
	f, err := openFiles(config.State)
	if err != nil {
		return files{}, err
	}
	if f.enrolled() {
		return files{}, errors.Join(ErrEnrolled, f.close())
	}
	if err := f.clear(); err != nil {
		return files{}, errors.Join(err, f.close())
	}
	return f, nil
}

func join(ctx context.Context, config Config, f files, token invite.Token, request JoinRequest, progress Progress) (*Plane, error) {
	// The port first: a member that cannot open its port would be of little use.
	p, err := newPlane(config, f)
	if err != nil {
		return nil, err
	}
	given, err := redeem(ctx, config, token, request, progress)
	if err == nil {
		if err = p.enrol(given.certificate, given.state); err != nil {
			err = fmt.Errorf("%w: %w", ErrMayBeMember, err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, p.abandon())
	}
	self := given.state.Nodes[p.id]
	progress("joined", "mesh", given.state.Mesh.Name, "node", self.Name, "address4", self.Addr4, "address6", self.Addr6)
	return p, nil
}

// abandon closes a plane that did not come to be; its files stay open.
func (p *Plane) abandon() error {
	p.cancel(nil)
	err := errors.Join(p.closeVoter(), p.listener.Close())
	p.tasks.Wait()
	if p.cache != nil {
		err = errors.Join(err, p.cache.Close())
	}
	return err
}

// enrol makes this machine a member on disk; the certificate comes last.
func (p *Plane) enrol(c certificate, state *store.State) error {
	if err := p.present(c); err != nil {
		return err
	}
	if err := cache.Bind(p.config.State, cache.Owner{Mesh: state.Mesh.ID, Node: p.id}); err != nil {
		return err
	}
	kept, err := cache.Open(p.config.State, p.config.Ring)
	if err != nil {
		return err
	}
	p.cache = kept
	p.confirm()
	if err := p.keep(state); err != nil {
		return err
	}
	p.advance(state)
	return p.files.write(certificateFile, c)
}

package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
)

// InitRequest is what a new mesh is made of.
type InitRequest struct {
	Mesh         string // its name
	Name         string // of this node
	Pool4, Pool6 netip.Prefix
	Prefixes     []netip.Prefix // of this node's site, masked
	Site         string         // where this node is; may be empty
}

// Init makes a mesh with this machine as its first node, only voter and only
// operator. Its control addresses are those of Config.Advertise, private ones only
// if there are no others: there is nobody yet who could check them. Nothing of it
// is left behind when it fails.
func Init(ctx context.Context, config Config, request InitRequest) (*Plane, error) {
	f, err := prepare(config)
	if err != nil {
		return nil, err
	}
	p, err := found(ctx, config, f, request)
	if err != nil {
		return nil, errors.Join(err, f.clear(), f.close())
	}
	return p, nil
}

func found(ctx context.Context, config Config, f files, request InitRequest) (*Plane, error) {
	p, err := newPlane(config, f)
	if err != nil {
		return nil, err
	}
	if err := p.found(ctx, request, store.Version); err != nil {
		return nil, errors.Join(err, p.abandon())
	}
	return p, nil
}

// found makes a mesh of a version, which tests of older meshes choose.
func (p *Plane) found(ctx context.Context, request InitRequest, version int) error {
	var id mesh.MeshID
	for id.IsZero() {
		rand.Read(id[:]) // never fails since Go 1.24
	}
	ca, err := transport.NewAuthority(id, time.Now())
	if err != nil {
		return err
	}
	leaf, err := ca.Issue(p.config.Ring.Identity(), time.Now())
	if err != nil {
		return err
	}
	const epoch = 1
	key, err := p.config.Ring.Generate(epoch)
	if err != nil {
		return err
	}
	if err := p.files.write(authorityFile, keyOf(ca)); err != nil {
		return err
	}
	p.voter.setAuthority(ca)
	if err := p.startLog(); err != nil {
		return err
	}
	if err := p.voter.store().Bootstrap(); err != nil {
		return err
	}
	first := store.Init{
		Settings: store.Settings{
			ID: id, Name: request.Mesh, Pool4: request.Pool4, Pool6: request.Pool6,
			CA: [][32]byte{ca.Pin()}, Roots: [][]byte{ca.Certificate()}, Version: version,
		},
		Name: request.Name, Identity: p.config.Ring.Identity(), Key: store.Key{Epoch: epoch, Public: key},
		Prefixes: request.Prefixes, Control: outermost(p.advertise()), Site: request.Site,
	}
	if version >= store.GossipVersion {
		secret := newSecret()
		sealed, err := seal(id, 1, secret, p.id, first.Key)
		if err != nil {
			return err
		}
		first.Check, first.Copy = secret.check(), &sealed
	} else {
		first.Settings.Secret = newSecret()
	}
	result, err := p.Propose(ctx, store.Command{Init: &first})
	if err != nil {
		return fmt.Errorf("make the mesh: %w", err)
	}
	if result.Refused != nil {
		return result.Refused
	}
	return p.enrol(certificate{Node: leaf, Authority: ca.Certificate()}, p.State())
}

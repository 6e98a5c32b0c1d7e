package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/config"
	"guywire/mesh/control"
	"guywire/mesh/core"
	"guywire/mesh/rendezvous"
	"guywire/store"
)

func (m *member) newAttempter() *rendezvous.Attempter {
	state := m.plane.State()
	ports := m.agent.config.Ports
	c := rendezvous.Config{
		Mesh: state.Mesh.ID, Self: m.self,
		Uplink: m.uplink,
		Open: func(mark uint32) (rendezvous.Socket, error) {
			return m.agent.outside.Socket(mark, ports.First, ports.Last, m.stunKey())
		},
		Declared:  m.declared,
		PortsKept: m.portsKept,
		Servers:   m.stunServers,
		Surveyed:  m.surveyOf,
		Carriers:  m.kernel.Carriers,
		ControlOf: func(peer mesh.NodeID) []netip.AddrPort {
			return m.standing.Load().state.Nodes[peer].Control
		},
		Exchange: m.exchange,
		Key: func() (mesh.Epoch, mesh.WireGuardKey) {
			keys := m.plane.State().Nodes[m.self].Keys
			if len(keys) == 0 {
				return 0, mesh.WireGuardKey{}
			}
			newest := keys[len(keys)-1]
			return newest.Epoch, newest.Public
		},
		Refuse: []netip.Prefix{state.Mesh.Pool4, state.Mesh.Pool6},
		Logger: m.log,
	}
	if m.agent.config.NAT.PortMapping {
		c.Map = m.mapPort
	}
	if m.agent.config.NAT.Spread != config.SpreadOff {
		c.SeenAt = m.seenAt
	}
	return rendezvous.New(c)
}

// uplink gives a local uplink as it is now.
func (m *member) uplink(name string) (mesh.Uplink, bool) {
	if h := m.host.Load(); h != nil {
		for _, u := range h.Uplinks {
			if u.Name == name {
				return u, u.Up
			}
		}
	}
	return mesh.Uplink{}, false
}

// stunKeys are what members may authenticate STUN requests with, stunKey the one
// that this node uses; nil: it has none.
func (m *member) stunKeys() [][]byte { return m.plane.Shared().STUN }

func (m *member) stunKey() []byte {
	if keys := m.stunKeys(); len(keys) > 0 {
		return keys[0]
	}
	return nil
}

// errBlocked ends attempts by an uplink that was found to pass no UDP.
var errBlocked = errors.New("UDP does not pass the uplink")

// startAttempt begins a link attempt; its end comes as an event in any case.
func (m *member) startAttempt(a core.Attempt) {
	link := a.Link
	local, ok := m.uplink(link.Local)
	err := errors.New("uplink " + link.Local + " is down")
	if ok {
		err = m.attempts.Start(context.Background(), rendezvous.Request{Peer: link.Peer, LocalUplink: local, RemoteUplink: link.Remote, Lane: link.Lane, Carrier: a.Carrier, Spread: a.Spread, Below: a.Below, PathRTT: a.PathRTT})
	}
	if err != nil {
		// The loop itself is here: it cannot post to its own full queue.
		go m.post(core.AttemptDone{Link: link, Spread: a.Spread && !busy(err), Err: err.Error(), Yielded: errors.Is(err, rendezvous.ErrRunning)}) // the far end's
	}
}

// followAttempts turns ended attempts into events.
func (m *member) followAttempts(ctx context.Context) error {
	defer m.attempts.Close()
	for {
		select {
		case r := <-m.attempts.Results():
			done := core.AttemptDone{
				Link: r.Link, ID: binary.BigEndian.Uint64(r.Attempt[:8]), Port: r.Port, Endpoint: r.Endpoint, Class: r.Class, Carrier: r.Carrier,
				Peer: store.Key{Epoch: r.PeerEpoch, Public: r.PeerKey}, First: r.First, Spread: r.Spread && !busy(r.Err), Hopeless: r.Hopeless,
				Effort: core.Effort{Packets: r.Packets, Bytes: r.Bytes},
			}
			if r.Initiated {
				done.Effort.Begun = 1
			}
			switch {
			case errors.Is(r.Err, rendezvous.ErrYielded):
				done.Err, done.Yielded = "the far end's attempt goes first", true
			case r.Err != nil:
				peer := r.Link.Peer
				done.Err = strings.ReplaceAll(r.Err.Error(), peer.String(), nodeName(m.plane.State(), peer))
			case !m.keyOf(r.Link.Peer, done.Peer):
				done.Err = "the far end's key is not the one in the log"
			}
			m.post(done)
		case <-ctx.Done():
			return nil
		}
	}
}

// busy reports whether an attempt was not made since one end had no room for it.
func busy(err error) bool {
	refused, ok := errors.AsType[*control.Error](err)
	return errors.Is(err, rendezvous.ErrBusy) || ok && refused.Code == control.CodeBusy
}

// keyOf reports whether the log names this WireGuard key for the node.
func (m *member) keyOf(node mesh.NodeID, key store.Key) bool {
	return slices.Contains(m.plane.State().Nodes[node].Keys, key)
}

// serveStun answers other members' STUN requests.
func (m *member) serveStun(ctx context.Context) error {
	serve, err := m.agent.outside.Stun(append(wildcards(mesh.StunPort), wildcards(mesh.StunPortSecond)...), m.stunKeys)
	if err != nil {
		m.log.Warn("STUN is not served here; other nodes ask elsewhere", mesh.LogError, err)
		return nil
	}
	return serve(ctx)
}

// askSTUN gives the servers of a list that answer, in a few seconds at most.
func (a *Agent) askSTUN(ctx context.Context, servers []netip.AddrPort, key []byte) ([]netip.AddrPort, error) {
	if len(servers) == 0 {
		return nil, nil
	}
	ports := a.config.Ports
	socket, err := a.outside.Socket(0, ports.First, ports.Last, key)
	if err != nil {
		return nil, err
	}
	answered, err := rendezvous.Answering(ctx, socket, servers)
	return answered, errors.Join(err, socket.Close())
}

// survey measures what each uplink looks like from outside: at once, after every
// change of an uplink or a sleep of the machine, when a link by it is lost, and
// from time to time.
func (m *member) survey(ctx context.Context) error {
	measured := map[string]time.Time{}
	tick := time.NewTicker(surveyTick)
	defer tick.Stop()
	wall, clock := time.Now().Round(0), time.Now()
	for {
		// Go's timers stand still while the machine sleeps, its clock goes on.
		resumed := time.Now().Round(0).Sub(wall)-time.Since(clock) > surveySleep
		wall, clock = time.Now().Round(0), time.Now()
		if resumed {
			clear(measured)
		}
		host := m.host.Load()
		for i := 0; host != nil && i < len(host.Uplinks) && len(m.stunServers()) > 0; i++ {
			if u := host.Uplinks[i]; u.Up && m.steers(u) && m.surveyDue(u, measured[u.Name]) {
				if m.surveyUplink(ctx, u, resumed) {
					measured[u.Name] = time.Now()
				}
			}
		}
		select {
		case <-tick.C:
		case <-m.carriedOut:
		case <-ctx.Done():
			return nil
		}
	}
}

// surveyDue reports whether an uplink is to be measured, which it was then.
func (m *member) surveyDue(u mesh.Uplink, then time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, known := m.surveys[u.Name]
	passes := func(n discovery.NAT) bool {
		return n != discovery.NATUnknown && n != discovery.NATBlocked && n != discovery.NATAbsent
	}
	switch {
	case !known || !slices.Equal(old.Addrs, u.Addrs) || then.IsZero():
		return true
	case !passes(old.NAT) && !passes(old.NAT6), m.doubted[u.Name].After(then):
		return time.Since(then) > surveyRetry
	default:
		return time.Since(then) > surveyEvery
	}
}

// surveyUplink measures an uplink, and reports whether it could.
func (m *member) surveyUplink(ctx context.Context, u mesh.Uplink, resumed bool) bool {
	found, err := m.attempts.Survey(ctx, u)
	if err != nil {
		m.log.Debug("uplink cannot be surveyed", mesh.LogUplink, u.Name, mesh.LogError, err)
		return false
	}
	seen := found.Uplink
	seen.Addrs = u.Addrs
	m.mu.Lock()
	m.surveys[u.Name] = survey{seen, time.Now(), found.Asked, found.Answers}
	m.mu.Unlock()
	m.seenAnew(u.Name, resumed)
	return true
}

// doubt has an uplink measured anew soon.
func (m *member) doubt(uplink string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.doubted[uplink] = time.Now()
	signal(m.agent.names.doubted)
}

// surveyOf gives what is known of how an uplink looks from outside.
func (m *member) surveyOf(name string) discovery.Uplink {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.outsideOf(name)
}

// surveyed reports whether every uplink that is up has been measured.
func (m *member) surveyed() bool {
	host := m.host.Load()
	if host == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, u := range host.Uplinks {
		if _, ok := m.surveys[u.Name]; u.Up && !ok {
			return false
		}
	}
	return true
}

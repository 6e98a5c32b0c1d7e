package dataplane

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
)

// A process is the state of the data plane: its devices and carriers.
type process struct {
	log      *slog.Logger
	version  string
	stop     func() // ends Run
	watch    *watch
	carriers *carriers

	mu       sync.Mutex
	tunnels  map[string]*tunnel
	stopping bool
}

// control answers the requests of one connection.
func (p *process) control(conn *net.UnixConn) {
	c := &rightsConn{idleConn: idleConn{conn, controlIdle}}
	defer c.drop()
	lines := bufio.NewReaderSize(c, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			answer(c, failure(fmt.Errorf("%w: line longer than %d bytes", ErrInvalid, maxLine)))
			return
		}
		if err != nil {
			return
		}
		req, err := decodeRequest(line)
		if err != nil {
			if answer(c, failure(err)) != nil {
				return
			}
			continue
		}
		rep, after := p.do(req, c)
		if answer(c, rep) != nil {
			return
		}
		if after != nil {
			after()
		}
	}
}

func answer(conn net.Conn, r reply) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = conn.Write(append(b, '\n'))
	return err
}

// do carries out one request, which came over c. What must wait until the
// answer is sent comes back as a function.
func (p *process) do(req request, c *rightsConn) (rep reply, after func()) {
	var err error
	switch req.Op {
	case opCreate:
		err = p.create(req.Name, req.MTU)
	case opDelete:
		err = p.delete(req.Name)
	case opList:
		rep.Devices = p.list()
	case opVersion:
		rep.Version = p.version
	case opShutdown:
		if err = p.shutdown(req.Force); err == nil {
			after = p.stop
		}
	case opPin:
		rep.Pin = p.carriers.pin[:]
	case opOpenCarrier:
		rep.Local, err = p.carriers.open(req.Carrier.carrier())
	case opCarriers:
		for _, s := range p.carriers.list() {
			rep.Carriers = append(rep.Carriers, wireOfStatus(s))
		}
	case opCloseCarrier:
		err = p.carriers.close([16]byte(req.ID))
	case opAccept:
		var conn *net.TCPConn
		if conn, err = c.take(); err == nil {
			err = p.carriers.accept(conn)
		}
	}
	if err != nil {
		return failure(err), nil
	}
	return rep, after
}

func (p *process) create(name string, mtu int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		old := p.tunnels[name]
		if old == nil {
			break
		}
		if old.alive() {
			return fmt.Errorf("%s: %w", name, ErrExists)
		}
		// Its link was deleted; the rest is on its way out.
		p.mu.Unlock()
		old.close()
		p.mu.Lock()
	}
	if p.stopping {
		return fmt.Errorf("%s: the data plane is stopping", name)
	}
	if len(p.tunnels) >= maxDevices {
		return fmt.Errorf("%s: the data plane has %d devices, the most it holds", name, maxDevices)
	}
	if err := p.watch.sockets(); err != nil {
		return err
	}
	t, err := openTunnel(name, mtu, p.log, p.ended)
	if err != nil {
		return err
	}
	p.tunnels[name] = t
	paceGC(len(p.tunnels))
	p.log.Info("device created", "device", name)
	return nil
}

func (p *process) delete(name string) error {
	p.mu.Lock()
	t := p.tunnels[name]
	p.mu.Unlock()
	if t == nil {
		return fmt.Errorf("%s: %w", name, ErrNoDevice)
	}
	t.close()
	return nil
}

// ended forgets a device. It is called once for each, from the device's own goroutine.
func (p *process) ended(t *tunnel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tunnels, t.link.name)
	paceGC(len(p.tunnels))
	p.log.Info("device ended", "device", t.link.name)
}

func (p *process) list() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.tunnels))
}

// shutdown forbids new devices, if there are neither devices nor carriers or
// force is set.
func (p *process) shutdown(force bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d, c := len(p.tunnels), p.carriers.count(); d+c > 0 && !force {
		return fmt.Errorf("%d devices, %d carriers: %w", d, c, ErrBusy)
	}
	p.stopping = true
	return nil
}

func (p *process) all() []*tunnel {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.tunnels))
}

// closeAll ends all devices, side by side.
func (p *process) closeAll() {
	var wg sync.WaitGroup
	for _, t := range p.all() {
		wg.Go(t.close)
	}
	wg.Wait()
}

// linksChanged is called after any change of any link.
func (p *process) linksChanged() {
	for _, t := range p.all() {
		t.link.look()
	}
}

// socketsChanged is called after a file left UAPIDir.
func (p *process) socketsChanged() {
	for _, t := range p.all() {
		if !t.uapi.present() {
			t.close()
		}
	}
}

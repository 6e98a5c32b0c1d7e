package agent

import "time"

const (
	// eventQueue bounds what waits for the core. A full queue drops datagrams
	// (they are repeated) and makes everything else wait.
	eventQueue = 4096
	// batch is how many queued events the core takes before it acts.
	batch = 256
	// eventLog is how many events are remembered.
	eventLog = 4096
	// announcementsEvery is how often what gossip passes on is brought up to date.
	announcementsEvery = 10 * time.Second
	// statsEvery is how often the tunnels are asked for their far ends.
	statsEvery = 2 * time.Second
	// lookAgain is when uplinks that could not be read are read again.
	lookAgain = time.Second
	// saveEvery bounds how often link records are written.
	saveEvery = time.Second
	// factsEvery is how often members of whom nothing is known are asked.
	factsEvery = time.Second
	// insistEvery is how often an operator's word that the log does not have yet
	// is tried again.
	insistEvery = 2 * time.Second
	// siteEvery is how often the mesh is told anew where this node is, until it
	// could be.
	siteEvery = 10 * time.Second
	// surveyEvery is how often the NAT of each uplink is measured anew.
	surveyEvery = 10 * time.Minute
	// surveyRetry is the same while too little is known or a link by it was lost,
	// surveyTick how often it is looked whether a survey is due.
	surveyRetry = 10 * time.Second
	surveyTick  = 250 * time.Millisecond
	// lifetimeAfter is how long a survey is left alone before lifetimes are measured,
	// lifetimeRest the time between the beginnings of two such measurements of an
	// uplink, and lifetimeTick how often it is looked whether one is due.
	lifetimeAfter       = 10 * time.Second
	lifetimeRest        = 10 * time.Minute
	lifetimeRestMetered = time.Hour
	lifetimeTick        = time.Second
	// namesEvery is how often names are looked up, namesRest the same while something
	// fails, and namesPatience the longest that it takes.
	namesEvery    = time.Minute
	namesRest     = 10 * time.Second
	namesPatience = 5 * time.Second
	// gatewaysTick is how often it is looked what is to be mapped, gatewayRetry when a
	// gateway that maps nothing is asked again, gatewayGrace how long a port is kept of
	// which no tunnel is known yet, gatewayPatience how long an attempt waits for a
	// gateway, and gatewaysClose how long it may take to take all back.
	gatewaysTick    = 5 * time.Second
	gatewayRetry    = 10 * time.Minute
	gatewayGrace    = time.Minute
	gatewayPatience = 300 * time.Millisecond
	gatewaysClose   = 2 * time.Second
	// spreadLazy and spreadEager are how long attempts have failed, at least, before a
	// path is looked for by chance ports: those who are asked must know the address.
	spreadLazy  = 10 * time.Minute
	spreadEager = 15 * time.Second
	// witnessSettled is for how long an address must have been where a tunnel leads to be
	// vouched for, witnessPatience how long witnesses may take, maxWitnesses how many
	// are asked, and witnessEvery how often each other node may ask.
	witnessSettled  = 10 * time.Second
	witnessPatience = 2 * time.Second
	maxWitnesses    = 6
	witnessEvery    = time.Second
	// candidateLife is how long an outside address is believed that nobody confirms.
	candidateLife = 30 * time.Minute
	// surveySleep is how long a machine must have slept, or its clock have jumped,
	// for its networks to be others.
	surveySleep = 3 * time.Second
	// carriersEvery is how often it is looked for carriers that no link goes through,
	// carrierSpare how long one may be so.
	carriersEvery = 10 * time.Second
	carrierSpare  = 40 * time.Second
	// connectPatience and answerPatience are how long an offer waits for a
	// connection to its receiver, and then for the answer, before it is sent over
	// voters as well.
	connectPatience = time.Second
	answerPatience  = 3 * time.Second
	// callAgain is how long after a call that failed another one is made.
	callAgain = 500 * time.Millisecond
	// maxRelayed bounds the relayed offers that are answered at once.
	maxRelayed = 32
	// enrolPatience bounds the wait for the first link of a join.
	enrolPatience = 15 * time.Second
	// teardownPatience bounds the removal of everything from the kernel.
	teardownPatience = 20 * time.Second
	// maxHops bounds a path query.
	maxHops = 32
	// lossLimit is the share of lost probes, in either direction, above which a
	// link that is up counts as degraded.
	lossLimit = 0.02
)
